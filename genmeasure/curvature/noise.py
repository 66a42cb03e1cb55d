"""The loss under Gaussian weight noise, from groups of examples that are drawn by how much they may matter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genmeasure.checkpoints.sharded import whole
from genmeasure.curvature.draws import generator
from genmeasure.curvature.memory import SHARE as MEMORY
from genmeasure.curvature.memory import free_bytes
from genmeasure.curvature.perturbation import Move, Perturbed
from genmeasure.curvature.sampling import degrees_of_freedom
from genmeasure.curvature.stacked import copies_at_once, runs_of, stacked_losses, takes_copies
from genmeasure.curvature.survey import survey as output_survey
from genmeasure.data.batches import Batch
from genmeasure.engine import progress
from genmeasure.errors import InputError, unknown
from genmeasure.estimate import MIN_DEGREES_OF_FREEDOM, Estimate
from genmeasure.layers import Layer
from genmeasure.risk import FORWARD, Risk

COVARIANCES = ("isotropic", "norm", "weight")
KEPT = 2**26
"""Numbers of one group's noise that are kept in any case; more where memory allows (half of what is free), else
they are drawn again from their seed whenever a layer runs."""
SHARED_OUT = 2**22
"""Numbers from which on threads take less time than starting them."""
GROUP_WORK, LEAST_GROUP, MOST_GROUP = 4e8, 8, 64
"""Multiplications that make a group large enough to fill a core, and the examples of a group."""
FIRST_GROUPS, GATHERED = 64, 2**19
"""Groups of the first sample, and numbers of the inputs that are held at a time."""
SHARE = 0.2
"""Of the variance that is allowed, what interpolation over sigmas may take."""
MARGIN, LEAST_GROWTH = 1.1, 1.25
"""More draws than the variance so far asks for, and the least that are added at once, relative to those there are."""
DOUBT = 9.0
"""A standard error from too few degrees of freedom is enough where its square is smaller than asked by this factor."""


@dataclass(frozen=True)
class Spreads:
    """Standard deviations of the noise in every weight, in units of sigma: a number or a tensor for each layer.

    `isotropic`: 1. `norm`: the root mean square of the layer's weights, so that the noise of a layer has sigma times
    its norm. `weight`: each weight's own size. factors [layers], if given, multiply them: one sigma per layer.
    """

    covariance: str = "isotropic"
    factors: tuple[float, ...] = ()

    def of(self, risk: Risk) -> dict[str, float | Tensor]:
        """By layer; raises `InputError` for an unknown covariance and for factors that fit no layers."""
        if self.covariance not in COVARIANCES:
            raise unknown("covariance", self.covariance, COVARIANCES)
        names = [layer.name for layer in risk.layers]
        if self.factors and (len(self.factors) != len(names) or min(self.factors) < 0):
            raise InputError(f"layer_sigmas={self.factors} came for {len(names)} layers; give one number that is not "
                             f"negative for each, in the order {', '.join(names)}")
        found = {}
        for name, factor in zip(names, self.factors or (1.0,) * len(names), strict=True):
            if self.covariance == "isotropic":
                found[name] = factor
                continue
            weight = whole(risk.weights[name])
            if self.covariance == "norm":
                found[name] = factor * weight.double().square().mean().sqrt().item()
            else:
                found[name] = factor * weight.abs()
        return found


ISOTROPIC = Spreads()


class Noise:
    """Standard normal u of every layer, told by numbers, and the moves W + sigma * spread * u that it makes.

    weights: by layer, for shape, dtype and device. copies: how many such are used side by side. What is kept, if it is
    much, is drawn by as many threads as torch has, a layer each: the host's generator takes one core, and is the same
    everywhere.
    """

    def __init__(self, layers: Sequence[Layer], spreads: Mapping[str, float | Tensor], weights: Mapping[str, Tensor],
                 *numbers: int, copies: int = 1):
        self.layers, self.spreads, self.weights, self.numbers = layers, spreads, weights, numbers
        self._kept: dict[str, Tensor] | None = {} if keeps([weights[x.name] for x in layers], copies) else None

    def moves(self, sigma: float) -> dict[str, Move]:
        return {layer.name: lambda w, i=i, layer=layer: self.offset(i, layer).mul(sigma).add_(w)
                for i, layer in enumerate(self.layers)}

    def offset(self, place: int, layer: Layer) -> Tensor:
        """spread * u of one layer, in the dtype of its weight."""
        if self._kept is None:
            return self._drawn(place)
        if not self._kept:
            self._kept.update(zip([x.name for x in self.layers], self._all_drawn(), strict=True))
        return self._kept[layer.name]

    def _all_drawn(self) -> list[Tensor]:
        places = range(len(self.layers))
        if sum(self.weights[x.name].numel() for x in self.layers) <= SHARED_OUT:
            return [self._drawn(place) for place in places]
        with ThreadPoolExecutor(min(torch.get_num_threads(), len(places))) as threads:
            return list(threads.map(self._drawn, places))

    @torch.no_grad()
    def _drawn(self, place: int) -> Tensor:
        layer = self.layers[place]
        return self.scaled(layer, self.draw(place, torch.empty(self.weights[layer.name].shape)))

    def draw(self, place: int, into: Tensor) -> Tensor:
        """u of one layer, written into a tensor of the host."""
        return torch.randn(into.shape, generator=generator("noise", *self.numbers, place), out=into)

    def scaled(self, layer: Layer, drawn: Tensor) -> Tensor:
        """spread * u for u [..., of the layer's shape], where its weight is and in its dtype."""
        weight = self.weights[layer.name]
        return drawn.to(weight.device, weight.dtype).mul_(self.spreads[layer.name])


@torch.no_grad()
def side_by_side(noises: Sequence[Noise]) -> dict[str, Tensor]:
    """spread * u of the layers [noises, ...] for noises of the same layers, drawn by as many threads as torch has."""
    first = noises[0]
    drawn = [torch.empty(len(noises), *first.weights[layer.name].shape) for layer in first.layers]

    def draw(row: int) -> None:
        for place, rows in enumerate(drawn):
            noises[row].draw(place, rows[row])
    with ThreadPoolExecutor(min(torch.get_num_threads(), len(noises))) as threads:
        list(threads.map(draw, range(len(noises))))
    return {layer.name: first.scaled(layer, rows) for layer, rows in zip(first.layers, drawn, strict=True)}


def keeps(weights: Sequence[Tensor], copies: int = 1) -> bool:
    """Whether so many copies of the weights may be kept beside them."""
    if copies * sum(w.numel() for w in weights) <= KEPT:
        return True
    size = copies * sum(w.nbytes for w in weights)
    return len({w.device for w in weights}) == 1 and size <= MEMORY * free_bytes(weights[0].device)


@dataclass(frozen=True)
class Curve:
    """Independent draws [n, k] of a quantity at k sigmas; their mean is the estimate.

    Where some draws were made at a few sigmas only, these are the draws that `Interpolation` completes.
    """

    values: Tensor

    @property
    def draws(self) -> int:
        return len(self.values)

    @property
    def value(self) -> Tensor:
        """[k]"""
        return self.values.mean(0)

    @property
    def covariance(self) -> Tensor:
        """[k, k], of `value`; nan after a single draw."""
        k = self.values.shape[1]
        if self.draws < 2:
            return torch.full((k, k), math.nan, dtype=torch.float64)
        return torch.cov(self.values.T).reshape(k, k) / self.draws

    @property
    def stderr(self) -> Tensor:
        return self.covariance.diagonal().sqrt()

    @property
    def degrees_of_freedom(self) -> float:
        """Of the least certain standard error: few where a few draws carry the variance."""
        return degrees_of_freedom((self.values - self.value).square()).min().item()

    def estimates(self) -> list[Estimate]:
        return [Estimate(v, s, self.draws) for v, s in zip(self.value.tolist(), self.stderr.tolist(), strict=True)]


@dataclass(frozen=True)
class Interpolation:
    """The draws at all k sigmas told from those at a few of them, `nodes`, by `weights` [nodes, k].

    I(sigma) / sigma^2 is taken for a polynomial in log sigma. What it misses is the mean of its residuals over draws
    that were made at all sigmas, so that no bias remains: the difference estimator of two-phase sampling (Sarndal,
    Swensson & Wretman 1992, Model Assisted Survey Sampling, section 9.6).
    """

    nodes: tuple[int, ...]
    weights: Tensor

    @classmethod
    def through(cls, sigmas: Sequence[float], count: int) -> Interpolation:
        """Nodes at `count` of the sigmas, spread evenly over their order, both ends among them."""
        s = torch.tensor(sigmas, dtype=torch.float64)
        if count == len(s):
            return cls(tuple(range(count)), torch.eye(count, dtype=torch.float64))
        order = s.argsort()
        places = torch.linspace(0, len(s) - 1, count).round().long() if count > 1 else torch.tensor([len(s) // 2])
        nodes = order[places]
        x, at = s.log(), s[nodes].log()
        columns = [torch.stack([(x - b) / (at[i] - b) for j, b in enumerate(at) if j != i] or
                               [torch.ones_like(x)]).prod(0) for i in range(count)]
        return cls(tuple(nodes.tolist()), torch.stack(columns) * (s / s[nodes, None]).square())

    def completed(self, whole: Tensor, part: Tensor) -> Tensor:
        """Draws [n + m, k] with the estimate as their mean, from draws [n, k] at all sigmas and [m, nodes]."""
        told = torch.cat([whole[:, self.nodes], part]) @ self.weights
        residuals = whole - told[:len(whole)]
        missed = residuals.mean(0)
        told[:len(whole)] += len(told) / len(whole) * (residuals - missed)
        return told + missed

    def settled(self, whole: Tensor, allowed: Tensor) -> bool:
        """Whether what it misses is known well enough from draws [n, k] at all sigmas, so that none more are needed.

        Draws at the nodes change neither its variance nor how well that is known: where few of the draws carry it, it
        must be small enough for the standard errors to be believed all the same.
        """
        squares = (whole - whole[:, self.nodes] @ self.weights)
        squares = (squares - squares.mean(0)).square()
        missed = squares.sum(0) / (len(whole) - 1) / len(whole)
        few = degrees_of_freedom(squares) < MIN_DEGREES_OF_FREEDOM
        return bool((missed <= torch.where(few, 0.5 / DOUBT, SHARE) * allowed).all())

    def draws_for(self, whole: Tensor, allowed: Tensor) -> float:
        """Draws at the nodes, `whole` among them, that make the variances of the means `allowed` [k]; inf if none."""
        if not self.settled(whole, allowed):
            return math.inf
        told = whole[:, self.nodes] @ self.weights
        missed = (whole - told).var(0) / len(whole)
        return max(len(whole), (told.var(0) / (allowed - missed)).nan_to_num(0.0).max().item())


@dataclass(frozen=True)
class Sample:
    """What one forward pass tells of every example: its probability to be drawn and its loss, [examples], float64."""

    probabilities: Tensor
    losses: Tensor

    def draw(self, groups: int, size: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows [groups, size] and weights [groups, size] of their values; all examples where they are not more.

        A group takes one example from each of as many equal strata of the cumulated probabilities, in the order of the
        probabilities; it sees every kind of example, and groups are independent.
        """
        n = len(self.probabilities)
        if n <= size:
            return torch.arange(n).expand(groups, n), torch.full((groups, n), 1 / n, dtype=torch.float64)
        order = self.probabilities.argsort(stable=True)
        ends = self.probabilities[order].cumsum(0)
        points = (torch.arange(size) + torch.rand(groups, size, generator=draws, dtype=torch.float64)) / size * ends[-1]
        rows = order[torch.searchsorted(ends, points, right=True).clamp(max=n - 1)]
        return rows, 1 / (n * self.probabilities[rows] * size)


@torch.no_grad()
def survey(risk: Risk) -> Sample:
    """Probabilities, a third each: equal, and in proportion to h and to its root.

    h is the trace of the loss's Hessian with respect to the outputs of an example, where the loss is a softmax
    cross-entropy: little noise moves the loss in proportion to it, much noise all losses alike. Else all are equal.
    """
    n = risk.batches.size
    if risk.loss.softmax_rows is None:
        return Sample(torch.full((n,), 1 / n, dtype=torch.float64), unrounded_losses(risk))
    found = output_survey(risk)
    h = found.traces.clamp(min=0)
    shares = [s / s.sum() for s in (torch.ones_like(h), h, h.sqrt()) if s.sum() > 0]
    return Sample(sum(shares) / len(shares), found.losses if risk.precision.passes is None else unrounded_losses(risk))


def unrounded_losses(risk: Risk) -> Tensor:
    """Of every example [examples], float64, from the outputs on and, as `Risk.unrounded` says, before."""
    def losses(batch: Batch) -> Tensor:
        batch = risk.place(batch)
        risk.spend(FORWARD, len(batch))
        with risk.unrounded():
            outputs = risk.outputs({}, batch).double()
        return risk.checked(risk.losses_of(outputs, batch), batch, "loss")
    return risk.engine.examples(losses, risk.batches)


def group_size(risk: Risk) -> int:
    """Examples that share a perturbation: as few as keep a core busy, since few examples share little of the noise."""
    work = 0.0
    for layer in risk.layers:
        weight = layer.matrix(risk.weights[layer.name])
        work += weight.numel() * (math.prod(layer.output_shape) / len(weight) if layer.output_shape else 1)
    size = int(min(MOST_GROUP, max(LEAST_GROUP, GROUP_WORK / work)))
    return min(size, max(risk.batches.lengths))


def grouped(risk: Risk, rows: Tensor) -> Iterator[Batch]:
    """The examples at `rows` [groups, size] in batches whose `index` is the group; several where shapes differ."""
    flat, order = rows.flatten().sort(stable=True)
    shapes: list[list[Batch]] = []
    for batch in risk.batches.gather(flat):
        alike = next((found for found in shapes if found[0].alike(batch)), None)
        if alike is None:
            shapes.append([batch])
        else:
            alike.append(batch)
    parts: list[Batch] = []
    for first, *others in shapes:
        batch = first.joined(*others)
        places, again = order[batch.rows].sort()
        batch = replace(batch.select(again), rows=places)
        groups, counts = (places // rows.shape[1]).unique_consecutive(return_counts=True)
        for group, count, end in zip(groups.tolist(), counts.tolist(), counts.cumsum(0).tolist(), strict=True):
            parts.append(replace(batch.select(slice(end - count, end)), index=group))
    yield from sorted(parts, key=lambda part: part.index)


def moved_losses(risk: Risk, model: Perturbed, noises: Sequence[Noise], batch: Batch, sigmas: Sequence[float], *,
                 one_sided: bool = False) -> Tensor:
    """[L(W + sigma U) + L(W - sigma U)] / 2 of every example, [batch, sigmas], float64; noises [sigmas].

    The pair cancels the first-order term exactly. one_sided: L(W + sigma U), the papers' way. The losses are float64
    from the outputs on: what noise adds to that of a well-fitted example is a small difference of larger numbers.
    """
    batch = risk.place(batch)

    def losses(moves: Mapping[str, Move]) -> Tensor:
        risk.spend(FORWARD, len(batch))
        with model.moved(moves):
            return risk.losses_of(risk.outputs({}, batch).double(), batch)
    columns = []
    for noise, sigma in zip(noises, sigmas, strict=True):
        up = losses(noise.moves(sigma))
        columns.append(up if one_sided else (up + losses(noise.moves(-sigma))) / 2)
    return torch.stack(columns, 1)


@torch.no_grad()
def group_draws(risk: Risk, sample: Sample, sigmas: Sequence[float], groups: range, *, layers: Sequence[Layer],
                spreads: Mapping[str, float | Tensor], numbers: Sequence[int], model: Perturbed,
                measured: Callable[..., Tensor] | None = None) -> Tensor:
    """Means over the data [groups, k] of what is measured, each from one group of examples with noise of its own.

    numbers: of the stream; together with a group's number they tell its noise and its examples. measured: takes what
    `moved_losses` takes and gives [batch, k], where k is a multiple of the number of sigmas, which go round fastest;
    without it what noise adds to the losses.
    """
    size = group_size(risk)
    inputs = sum(t[0].numel() for t in next(iter(risk.batches)).input_tensors())
    copies = copies_at_once(risk, layers) if measured is None else 1
    step = max(min(copies, FIRST_GROUPS), GATHERED // (size * inputs))

    def means(first: int, count: int) -> Tensor:
        rows, weights = sample.draw(count, size, generator("noise sample", *numbers, first))
        each = rows.shape[1]
        made: dict[int, Noise] = {}

        def noise_of(group: int) -> Noise:
            if group not in made:
                made.clear()  # batches of a group follow each other
                made[group] = Noise(layers, spreads, risk.weights, *numbers, first + group)
            return made[group]

        def of_examples(batch: Batch) -> Tensor:
            groups = (batch.rows // each).unique_consecutive().tolist()
            if len(groups) == 1:
                return (measured or moved_losses)(risk, model, [noise_of(groups[0])] * len(sigmas), batch, sigmas)
            if len(batch) < len(groups) * each:  # cut where memory was short
                return torch.cat([of_examples(batch.select(batch.rows // each == group)) for group in groups])
            noises = [Noise(layers, spreads, risk.weights, *numbers, first + group) for group in groups]
            return stacked_losses(risk, side_by_side(noises), batch, sigmas, copies)
        batches = list(grouped(risk, rows))
        if copies > 1 and takes_copies(risk, layers, batches[0]):
            batches = runs_of(batches, each, copies)
        else:
            model.find()
        places = torch.cat([batch.rows for batch in batches])
        examples = rows.flatten()[places]
        values = risk.engine.examples(of_examples, batches)
        if measured is None:
            values = values - sample.losses[examples, None]
        if not values.isfinite().all():
            place, column = (~values.isfinite()).nonzero()[0].tolist()
            raise InputError(f"the loss under noise of sigma={sigmas[column % len(sigmas)]:g} is NaN or infinite on "
                             f"example {examples[place]} of {risk.batches.name!r}; give smaller sigmas, or measure "
                             "with --dtype float64")
        sums = torch.zeros(count, values.shape[1], dtype=torch.float64)
        return sums.index_add(0, places // each, weights.flatten()[places, None] * values)
    return torch.cat([means(start, min(step, groups.stop - start)) for start in range(groups.start, groups.stop, step)])


def noise_curve(risk: Risk, sample: Sample, sigmas: Sequence[float], *, layers: Sequence[Layer] | None = None,
                spreads: Spreads = ISOTROPIC, rtol: float, atol: float = 0.0, max_passes: int, seed: int) -> Curve:
    """I(sigma) = E L(W + U) - L(W) for every sigma, U Gaussian with standard deviations sigma * spread on `layers`.

    Antithetic pairs; a group of examples shares its U, which serves all sigmas and makes the curve smooth: its entries
    are correlated. After the first sample only as many sigmas are drawn as make the rest cheapest (`Interpolation`).
    Ends when every entry has a standard error of at most `max(atol, rtol * |value|)`, or of what rounding does to a
    loss, or when `max_passes` times as many examples as there are have been drawn.
    """
    chosen = risk.layers if layers is None else tuple(layers)
    model = Perturbed(risk, chosen)
    numbers = (seed, 0 if layers is None else 1 + risk.layers.index(chosen[0]))
    at_hand = spreads.of(risk)

    def more(start: int, stop: int, at: Sequence[float]) -> Tensor:
        return group_draws(risk, sample, at, range(start, stop), layers=chosen, spreads=at_hand, numbers=numbers,
                           model=model)
    limit = max(2, max_passes * risk.batches.size // min(group_size(risk), risk.batches.size))
    rounding = torch.finfo(risk.dtype).eps * sample.losses.abs().mean().item()
    return drawn_curve(more, sigmas, limit, rtol, max(atol, rounding))


def drawn_curve(draw: Callable[..., Tensor], sigmas: Sequence[float], limit: int, rtol: float, atol: float) -> Curve:
    """The curve of draws `draw(start, stop, at)` [stop - start, len(at)], at all sigmas and then at the cheapest.

    All sigmas again where the values have come out so much smaller that what interpolation misses is no longer little.
    """
    whole = [draw(0, min(limit, FIRST_GROUPS), sigmas)]
    way = cheapest(whole[0], sigmas, allowed(Curve(whole[0]), rtol, atol))
    part = [whole[0].new_zeros(0, len(way.nodes))]

    def completed(start: int, stop: int) -> Tensor:
        if start:
            wanted = allowed(Curve(way.completed(torch.cat(whole), torch.cat(part))), rtol, atol)
            if way.settled(torch.cat(whole), wanted):
                part.append(draw(start, stop, [sigmas[i] for i in way.nodes]))
            else:
                whole.append(draw(start, stop, sigmas))
        return way.completed(torch.cat(whole), torch.cat(part))
    return until_precise(completed, limit, rtol, atol)


def cheapest(whole: Tensor, sigmas: Sequence[float], variances: Tensor) -> Interpolation:
    """The interpolation that makes the means of draws [n, k] known to these variances [k] at the least cost."""
    def cost(way: Interpolation) -> float:
        return (way.draws_for(whole, variances) - len(whole)) * len(way.nodes)
    *ways, everything = (Interpolation.through(sigmas, count) for count in range(1, len(sigmas) + 1))
    return min((way for way in ways if cost(way) < cost(everything)), key=cost, default=everything)


def allowed(curve: Curve, rtol: float, atol: float) -> Tensor:
    """Variances [k] that are asked for."""
    return (rtol * curve.value.abs()).clamp(min=atol).square()


def until_precise(more: Callable[[int, int], Tensor], limit: int, rtol: float, atol: float) -> Curve:
    """The draws `more(start, stop)` [stop, k], when all k means are known, at most `limit`; called without gaps."""
    found = Curve(more(0, min(limit, FIRST_GROUPS)))
    for _ in progress(range(limit), "noise"):
        variance = found.stderr.square()
        excess = torch.where(variance > 0, variance / allowed(found, rtol, atol), 0.0).nan_to_num(torch.inf)
        excess = excess.max().item()
        doubtful = found.degrees_of_freedom < MIN_DEGREES_OF_FREEDOM and excess * DOUBT > 1
        if found.draws >= limit or (excess <= 1 and not doubtful):
            return found
        wanted = math.ceil(found.draws * min(2.0, max(LEAST_GROWTH, MARGIN * excess)))
        found = Curve(more(found.draws, min(limit, wanted)))
    return found


@torch.no_grad()
def one_sided_curve(risk: Risk, sample: Sample, sigmas: Sequence[float], *, layers: Sequence[Layer] | None = None,
                    spreads: Spreads = ISOTROPIC, rtol: float, atol: float = 0.0, max_passes: int, seed: int) -> Curve:
    """I(sigma) the papers' way: draws of L(W + U) - L(W), one U for all the data and every sigma.

    Their spread is what the papers print beside the mean. Ends as `noise_curve` does, after at most `max_passes` draws.
    """
    chosen = risk.layers if layers is None else tuple(layers)
    model, at_hand = Perturbed(risk, chosen), spreads.of(risk)
    model.find()
    first = 0 if layers is None else 1 + risk.layers.index(chosen[0])

    def one(number: int) -> Tensor:
        noises = [Noise(chosen, at_hand, risk.weights, seed, first, number, place, copies=len(sigmas))
                  for place in range(len(sigmas))]

        def sums(batch: Batch) -> Tensor:
            return moved_losses(risk, model, noises, batch, sigmas, one_sided=True).sum(0)
        return risk.engine.batch_sums(sums, risk.batches).sum(0) / risk.batches.size - sample.losses.mean()

    drawn: list[Tensor] = []

    def more(start: int, stop: int) -> Tensor:
        drawn.extend(one(number) for number in range(start, stop))
        return torch.stack(drawn)
    return until_precise(more, max(2, max_passes), rtol, atol)
