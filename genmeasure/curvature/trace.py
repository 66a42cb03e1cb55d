"""Traces of the diagonal blocks H_ii of the mean loss, per layer and in total."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from genmeasure.curvature.draws import batch_generator, generator, rademacher
from genmeasure.curvature.gauss_newton import linear_layers, untapped_squared_gradients
from genmeasure.curvature.other_tools import pyhessian_probes
from genmeasure.curvature.padding import by_length, positions
from genmeasure.curvature.products import batch_hessian_product
from genmeasure.curvature.sampling import (
    Total,
    estimated_total,
    inclusion_probabilities,
    paired_mean,
    paired_sample,
)
from genmeasure.curvature.survey import NEGLIGIBLE, Survey, survey
from genmeasure.curvature.tangents import find_tangents, in_parts, second_derivatives
from genmeasure.curvature.taps import Probe, Taps, find_taps, squared_gradients
from genmeasure.data.batches import Batch
from genmeasure.engine import progress
from genmeasure.errors import InputError, unknown
from genmeasure.estimate import MIN_DEGREES_OF_FREEDOM, Estimate, StratifiedMean
from genmeasure.layers import Layer
from genmeasure.risk import Risk

ROUTES = ("gauss-newton", "split", "hutchinson", "pyhessian")
FIRST_PAIRS = 256
"""Pairs of an example and a direction in the first sample."""
FIRST_DRAWS, GATHERED = 192, 1024
"""Examples of the first sample with random directions, and examples held at a time."""


@dataclass(frozen=True)
class Traces:
    """Tr H_ii [layers] of the mean loss, the covariance [layers, layers] of the estimates, and how they were got.

    draws: (example, direction) pairs and random probes that were evaluated, or examples where nothing was drawn.
    linear: for every layer whether the outputs are piecewise linear in its weights; None where nobody looked.
    tangents: whether second derivatives were taken by `curvature.tangents`, not by double backward; None for neither.
    """

    value: Tensor
    covariance: Tensor
    draws: int
    route: str
    linear: tuple[bool, ...] | None = None
    tangents: bool | None = field(default=None, kw_only=True)

    def estimate(self, weights: Tensor | None = None) -> Estimate:
        """The sum over layers, weighted by `weights` [layers] if given; correlations are accounted for."""
        w = torch.ones_like(self.value) if weights is None else weights
        variance = (w @ self.covariance @ w).clamp(min=0)
        return Estimate((w @ self.value).item(), variance.sqrt().item(), self.draws)


class Part(Protocol):
    """A sampled summand of the traces that can be made more precise."""

    draws: int
    finished: bool
    """Whether no more can be drawn."""

    @property
    def total(self) -> Total:
        """The estimate [layers] so far, of the mean over examples."""

    def extend(self, excess: Tensor) -> None:
        """Draw more; excess [layers + 1]: how many times larger than allowed the variances of layers and total are."""


def block_traces(risk: Risk, *, route: str, rtol: float, layer_rtol: float, atol: float, max_passes: int, seed: int,
                 gauss_newton: bool = False) -> Traces:
    """Tr H_ii for every layer, or Tr G_ii of the Gauss-Newton matrix if asked.

    route `gauss-newton`: Tr G_ii, which is Tr H_ii where the network is piecewise linear in each weight tensor, from
    pairs of an example and a direction in output space drawn with probability proportional to the direction's weight in
    the example's output Hessian. `split`: that, plus random directions of the residual H - G in the layers where it is
    not zero. `hutchinson`: random probes of H, fresh for every batch; for any network and loss. `pyhessian`: as that
    package draws them, one probe at a time for all the data. `auto`: `gauss-newton` where the network is found
    piecewise linear, else `split`, and `hutchinson` where layers or loss do not allow these.

    Ends when the total has a standard error of at most `max(atol, rtol * |value|)` and every layer one of
    `max(atol, layer_rtol * |value|)` (for a layer with less than a hundredth of the total, as one with a hundredth),
    when everything was taken and the result is exact, or after `max_passes` draws per example on average. Raises
    `InputError` for an unknown route or one that this network or loss does not allow.
    """
    if route not in ("auto", *ROUTES):
        raise unknown("route", route, ["auto", *ROUTES])
    if not gauss_newton:
        risk.twice_differentiable  # noqa: B018 - raises where it is not
    tolerances = Tolerances(len(risk.layers), rtol, layer_rtol, atol)
    if route == "pyhessian":
        return _pyhessian(risk, tolerances, max_passes, seed)
    if route == "hutchinson":
        return _hutchinson(risk, tolerances, max_passes, seed, None)
    taps = find_taps(risk)
    linear = None if gauss_newton else linear_layers(risk, taps)
    found = "gauss-newton" if gauss_newton or route == "gauss-newton" or all(linear) else "split"
    try:
        flat = (True,) * len(risk.layers) if found == "gauss-newton" else linear
        parts = _parts(risk, taps, flat, max_passes, seed)
    except InputError:
        if route != "auto" or gauss_newton:
            raise
        return _hutchinson(risk, tolerances, max_passes, seed, linear)
    value, covariance = _until_precise(parts, tolerances)
    tangents = find_tangents(risk, taps) is not None if any(isinstance(p, Residual) for p in parts) else None
    return Traces(value, covariance, sum(p.draws for p in parts), found, linear, tangents=tangents)


@dataclass(frozen=True)
class Tolerances:
    """What is watched: every layer and the total, [layers + 1]."""

    layers: int
    rtol: float
    layer_rtol: float
    atol: float

    @property
    def asked(self) -> Tensor:
        """Whether any precision is asked for, [layers + 1]."""
        return torch.tensor([math.isfinite(self.layer_rtol)] * self.layers + [math.isfinite(self.rtol)])

    @property
    def watch(self) -> Tensor:
        """[layers + 1, layers]"""
        return torch.cat([torch.eye(self.layers), torch.ones(1, self.layers)]).double()

    def excess(self, value: Tensor, covariance: Tensor) -> Tensor:
        """Variance over the variance that is allowed, [layers + 1]; above 1 or nan where precision is short."""
        w = self.watch
        size = (w @ value).abs()
        least = LEAST_SHARE * min(self.rtol, self.layer_rtol) * size[-1]
        allowed = torch.cat([(self.layer_rtol * size[:-1]).clamp(min=least), self.rtol * size[-1:]])
        allowed = allowed.nan_to_num(torch.inf).clamp(min=self.atol).square()
        variance = ((w @ covariance) * w).sum(1).clamp(min=0)
        return torch.where(variance == 0, 0.0, variance / allowed)


def _until_precise(parts: Sequence[Part], tolerances: Tolerances) -> tuple[Tensor, Tensor]:
    for part in parts:
        part.extend(torch.full((tolerances.layers + 1,), torch.inf))
    for _ in progress(itertools.count(), "trace"):
        totals = [part.total for part in parts]
        value, covariance = sum(t.value for t in totals), sum(t.covariance for t in totals)
        excess = tolerances.excess(value, covariance).nan_to_num(torch.inf)
        shares = [tolerances.excess(value, t.covariance).nan_to_num(torch.inf) for t in totals]
        doubts = [(share * DOUBT > 1).any() & (t.degrees_of_freedom(tolerances.watch) < ENOUGH) & tolerances.asked
                  for t, share in zip(totals, shares, strict=True)]
        wanted = [torch.where(doubt, excess.clamp(min=AGAIN), excess) for doubt in doubts]
        # what is short may not be short because of what can still be drawn
        open_ = [i for i, part in enumerate(parts) if not part.finished and (shares[i][wanted[i] > 1] > 0).any()]
        if not open_:
            return value, covariance
        worst = max(open_, key=lambda i: (doubts[i].any(), shares[i][wanted[i] > 1].max()))
        parts[worst].extend(wanted[worst])
    raise AssertionError("counting ends only by return")


def _parts(risk: Risk, taps: Taps | None, linear: Sequence[bool], max_passes: int, seed: int) -> list[Part]:
    """The Gauss-Newton part, and the residual of the layers in which the outputs are not linear."""
    curved = [i for i, flat in enumerate(linear) if not flat]
    if curved and taps is None:
        raise InputError("some weights are used by operations that cannot be tapped, so that the residual H - G cannot "
                         "be drawn example by example; take route=hutchinson")
    found = survey(risk)
    if found is None:
        raise InputError(f"the loss {risk.loss.name!r} has an output Hessian too large to decompose; take "
                         "route=hutchinson")
    limit = max_passes * risk.batches.size
    parts: list[Part] = [Pairs(risk, taps, found, limit, seed) if found.apart else
                         Labels(risk, taps, found.sizes[:, 0], limit, seed)]
    if curved and found.slopes.any():
        parts.append(Residual(risk, taps, found.slopes, curved, limit, seed))
    return parts


ENOUGH, DOUBT, AGAIN = 40, 9.0, 1.5
"""Degrees of freedom from which on a standard error is believed; below, its square must be smaller by this factor, or
as many draws again are taken as would bring it down by the last one."""
LEAST_SHARE = 0.01
"""Layers with less than this share of the total are asked for no more precision than those that have it."""


class Pairs:
    """Tr G_ii = sum over examples x and directions k of size_k(x) |d(u_k . f(x)) / dW_i|^2, by sampling of the pairs.

    Drawn with probability proportional to size, which is known after one forward pass, by Poisson sampling with
    permanent random numbers (Ohlsson 1995): larger samples contain the smaller ones. The largest pairs are certain.
    Exact when all are taken.
    """

    def __init__(self, risk: Risk, taps: Taps | None, survey: Survey, limit: int, seed: int):
        sizes = survey.sizes
        largest = sizes.abs().max(1, keepdim=True).values
        self.examples, self.which = (sizes.abs() > NEGLIGIBLE * largest).nonzero(as_tuple=True)
        self.signed = sizes[self.examples, self.which]
        self.risk, self.taps, self.survey, self.limit = risk, taps, survey, limit
        numbers = torch.rand(sizes.shape, generator=generator("trace pairs", seed), dtype=torch.float64)
        self.numbers = numbers[self.examples, self.which]
        self.probabilities = torch.zeros_like(self.signed)
        self.measured = torch.zeros(len(self.signed), dtype=torch.bool)
        self.ratios = torch.zeros(len(self.signed), len(risk.layers), dtype=torch.float64)
        self.count = 0.0

    @property
    def draws(self) -> int:
        return self.risk.batches.size if self.measured.all() else int(self.measured.sum())

    @property
    def total(self) -> Total:
        sampled = self.measured.nonzero().squeeze(1)
        found = estimated_total(self.signed.abs(), self.probabilities, sampled, self.ratios[sampled])
        n = self.risk.batches.size
        return Total(found.value / n, found.residuals / n)

    @property
    def finished(self) -> bool:
        return self.count >= min(self.limit, len(self.signed))

    def extend(self, excess: Tensor) -> None:
        factor = min(2.0, max(1.5, 1.1 * excess.max().item()))
        self.count = min(factor * self.count if self.count else FIRST_PAIRS, self.limit, len(self.signed))
        self.probabilities = inclusion_probabilities(self.signed.abs(), self.count)
        new = ((self.numbers < self.probabilities) & ~self.measured).nonzero().squeeze(1)
        if len(new):
            self.ratios[new] = self.signed[new].sign()[:, None] * self._squared_gradients(new)
        self.measured[new] = True

    def _squared_gradients(self, pairs: Tensor) -> Tensor:
        """|d(u . f(x)) / dW_i|^2 [pairs, layers] of pairs in the order of their examples."""
        examples, place = self.examples[pairs].unique_consecutive(return_inverse=True)
        if len(pairs) <= 2 * len(examples):  # repeating an example costs less than idle directions of its neighbours
            return self._measured(self.examples[pairs], lambda b: self._of(b, pairs[b.rows][None])[0])
        most = int(place.bincount().max())
        table = torch.full((most, len(examples)), -1)
        rank = torch.arange(len(pairs)) - torch.searchsorted(place, place)
        table[rank, place] = pairs
        return self._measured(examples, lambda b: self._of(b, table[:, b.rows]).transpose(0, 1))[place, rank]

    def _measured(self, examples: Tensor, of: Callable[[Batch], Tensor]) -> Tensor:
        """What `of` says of these examples, ascending."""
        parts = [part for batch in self.risk.batches.gather(examples) for part in by_length(self.risk, batch)]
        program = self.taps and self.taps.program
        core_each = program is not None and program.core_each
        if core_each:
            parts = [few for part in parts for few in part.split(program.at_once)]
        return self.risk.engine.examples(of, parts, core_each=core_each).double()[positions(parts)]

    def _of(self, batch: Batch, pairs: Tensor) -> Tensor:
        """[D, b, layers] for pairs [D, b], -1 where an example has none."""
        used = pairs[(pairs >= 0).any(1)]

        def directions(outputs: Tensor) -> Tensor:
            vectors = self.survey.ends(self.risk, batch, outputs, self.examples[used], self.which[used])
            return torch.where((used >= 0).to(outputs.device)[..., None], vectors, 0.0)
        found = _squared_gradients(self.risk, self.taps, batch, directions)
        return torch.cat([found, found.new_zeros(len(pairs) - len(used), *found.shape[1:])])


def _squared_gradients(risk: Risk, taps: Taps | None, batch: Batch, directions: Callable[[Tensor], Tensor]) -> Tensor:
    if taps is not None:
        return squared_gradients(risk, taps, batch, directions)
    return untapped_squared_gradients(risk, batch, directions)


Evaluation = Callable[[Batch], Tensor]
"""batch -> [batch, k], a draw for each of its examples; `batch.rows` numbers the draws."""


class Stages:
    """Means over examples of quantities that are drawn anew each time, in stages of paired samples.

    Examples are drawn with probability proportional to `sizes` [examples]. A stage may leave columns out; what it says
    of a column counts by its share in the column's draws.
    """

    def __init__(self, risk: Risk, sizes: Tensor, columns: int, seed: int, purpose: str):
        self.risk, self.sizes, self.seed, self.purpose = risk, sizes.double(), seed, purpose
        self.counts = torch.zeros(columns, dtype=torch.float64)
        self._stages: list[tuple[Tensor, int, Total]] = []

    def draw(self, places: Tensor, count: int, evaluation: Callable[[torch.Generator, int], Evaluation],
             cut: Callable[[Batch], list[Batch]]) -> None:
        """`count` more draws of the columns at `places`, an even number; cut: a batch in parts to evaluate."""
        draws = generator(f"trace {self.purpose}", self.seed, len(self._stages))
        sample = paired_sample(self.sizes, count // 2, draws)
        weights = self.sizes.sum() / self.sizes[sample] / self.risk.batches.size
        evaluate, values = evaluation(draws, count), []
        for start in range(0, count, GATHERED):
            batches = self.risk.batches.gather(sample[start:start + GATHERED])
            parts = [replace(part, rows=part.rows + start) for batch in batches for part in cut(batch)]
            values.append(self.risk.engine.examples(evaluate, parts).double()[positions(parts)])
        found = paired_mean(torch.cat(values) * weights[:, None])
        self._stages.append((places, count, found))
        self.counts[places] += count

    @property
    def total(self) -> Total:
        value, residuals = torch.zeros(len(self.counts), dtype=torch.float64), []
        for places, count, found in self._stages:
            share = count / self.counts[places]
            value[places] += share * found.value
            residuals.append(torch.zeros(len(found.residuals), len(value), dtype=torch.float64))
            residuals[-1][:, places] = share * found.residuals
        return Total(value, torch.cat(residuals))


class Labels:
    """Tr G_ii for many softmax rows: squared gradients with labels drawn from the model's own probabilities.

    The rows' labels are independent and their gradients have mean zero, so one gradient of an example's total serves
    all its rows (the Fisher information).
    """

    def __init__(self, risk: Risk, taps: Taps | None, sizes: Tensor, limit: int, seed: int):
        self.risk, self.taps, self.limit = risk, taps, limit
        self.stages = Stages(risk, sizes, len(risk.layers), seed, "labels")

    @property
    def draws(self) -> int:
        return int(self.stages.counts[0])

    @property
    def total(self) -> Total:
        return self.stages.total

    @property
    def finished(self) -> bool:
        return self.draws >= self.limit

    def extend(self, excess: Tensor) -> None:
        growth = min(1.0, max(0.2, 1.1 * excess.max().item() - 1))
        count = max(FIRST_DRAWS, round(self.draws * growth / 2) * 2)
        everything = torch.arange(len(self.risk.layers))
        self.stages.draw(everything, count, self._evaluation, lambda batch: [batch])

    def _evaluation(self, draws: torch.Generator, count: int) -> Evaluation:
        risk = self.risk
        seeds = torch.randint(2**31, (count,), generator=draws)

        def norms(batch: Batch) -> Tensor:
            targets = risk.place(batch).targets

            def directions(outputs: Tensor) -> Tensor:
                with torch.enable_grad():
                    point = outputs.detach().requires_grad_()
                    logits, mask = risk.loss.softmax_rows(point, targets)
                    p = logits.detach().softmax(-1)
                    uniform = torch.stack([torch.rand(p.shape[1], generator=torch.Generator().manual_seed(s))
                                           for s in seeds[batch.rows].tolist()]).to(p.device)
                    cumulated = p.double().cumsum(-1)
                    drawn = torch.searchsorted(cumulated, uniform.double()[..., None] * cumulated[..., -1:])
                    drawn = drawn.clamp(max=p.shape[-1] - 1)
                    score = logits.gather(-1, drawn)[..., 0] - (p * logits).sum(-1)
                    (direction,) = torch.autograd.grad((score * mask).sum(), point)
                return risk.scale**0.5 * direction[None]
            return _squared_gradients(risk, self.taps, batch, directions)[0]
        return norms


class Residual:
    """Tr (H - G)_ii by z' (H - G)_ii z, every draw of an example along its own random direction z of each layer.

    The residual is the slope of the loss times second derivatives of the outputs; examples are drawn by that slope.
    Layers are drawn in turn, without the blocks between them, which would vanish in the mean but not in the variance,
    and as often as their variance and their cost ask for (Neyman's allocation); those that are equally well known
    share a forward and a backward pass.
    """

    def __init__(self, risk: Risk, taps: Taps, slopes: Tensor, rows: Sequence[int], limit: int, seed: int):
        self.risk, self.taps, self.limit = risk, taps, limit
        self.rows, self.finished = torch.tensor(list(rows)), False
        times = 4 if find_tangents(risk, taps) is None else 1
        self.costs = torch.tensor([0.5 + times * taps.behind(risk.layers[i].name) for i in rows], dtype=torch.float64)
        self.stages = Stages(risk, slopes, len(rows), seed, "residual")

    @property
    def draws(self) -> int:
        return int(self.stages.counts.sum())

    @property
    def total(self) -> Total:
        k, found = len(self.risk.layers), self.stages.total
        value, residuals = found.value.new_zeros(k), found.residuals.new_zeros(len(found.residuals), k)
        value[self.rows], residuals[:, self.rows] = found.value, found.residuals
        return Total(value, residuals)

    def extend(self, excess: Tensor) -> None:
        """excess: [layers + 1], how many times larger than allowed each variance is."""
        more = self._more(excess) if self.draws else torch.full((len(self.rows),), FIRST_DRAWS)
        self.finished = not more.any()  # the layers that are wanted have all they may have
        for count in more.unique().tolist():
            if count:
                self._draw((more == count).nonzero().squeeze(1), count)

    def _more(self, excess: Tensor) -> Tensor:
        """Draws to add to those of every layer."""
        have = self.stages.counts
        wanted = have * excess[self.rows]  # for the layers themselves
        covariance = self.total.covariance[self.rows[:, None], self.rows]
        if excess[-1] > 1:
            spread = (covariance.diagonal() * have).sqrt()  # of one draw, up to a common factor
            allowed = covariance.diagonal().sum() / excess[-1]  # layers' errors go on adding up as they do now
            wanted = torch.maximum(wanted, spread / self.costs.sqrt() * (spread * self.costs.sqrt()).sum() / allowed)
            if not (wanted > have).any():
                wanted = have * excess[-1]
        factor = (1.1 * wanted / have).clamp(max=2.0)
        steps = torch.tensor([1.0, 1.2, 1.5, 2.0], dtype=torch.float64)  # few, so that layers go together
        factor = steps[torch.searchsorted(steps, factor.clamp(min=1.0) - 0.05).clamp(max=3)]
        more = 2 * (have * (factor - 1) / 2).ceil().long()
        return torch.where((have >= self.limit) | (wanted <= have), 0, more)

    def _draw(self, places: Tensor, count: int) -> None:
        layers = [self.risk.layers[i] for i in self.rows[places]]
        self.stages.draw(places, count, lambda g, n: self._evaluation(layers, g, n),
                         lambda batch: in_parts(self.risk, self.taps, batch, len(layers)))

    def _evaluation(self, layers: Sequence[Layer], draws: torch.Generator, count: int) -> Evaluation:
        risk, shared, seeds = self.risk, {}, {}
        for layer in layers:
            shape = tuple(risk.weights[layer.name].shape)
            if len(shape) > 2 and math.prod(shape[2:]) > 1:  # signs of inputs and outputs do not mix a kernel's places
                seeds[layer.name] = torch.randint(2**31, (count,), generator=draws)
            else:
                out, into = self.taps.features[layer.name]
                shared[layer.name] = [rademacher(s, draws) for s in (shape, (count, out), (count, into))]

        def probe(name: str, rows: Tensor) -> Probe:
            if name in shared:
                v, out, into = shared[name]
                return Probe(*(t.to(risk.device, risk.dtype) for t in (v, out[rows], into[rows])))
            size = risk.weights[name].numel()
            each = [rademacher((size,), torch.Generator().manual_seed(s)) for s in seeds[name][rows].tolist()]
            return Probe(torch.stack(each).to(risk.device, risk.dtype))

        def linearised(outputs: Tensor, batch: Batch) -> Tensor:
            point = outputs.detach().requires_grad_()
            (slope,) = torch.autograd.grad(risk.scale * risk.loss(point, batch.targets).sum(), point)
            return (slope * outputs).flatten(1).sum(1)

        def forms(batch: Batch) -> Tensor:
            mine = {layer.name: probe(layer.name, batch.rows) for layer in layers}
            return second_derivatives(risk, self.taps, batch, mine, linearised)[1]
        return forms


def hutchinson(risk: Risk, batch: Batch, probes: dict[str, Tensor], losses: Callable | None = None) -> Tensor:
    """z_i' (H z)_i for the sum of a batch's losses, [layers]; its expectation over Rademacher z is Tr H_ii."""
    products = batch_hessian_product(risk, batch, probes, losses)
    return torch.stack([(products[k] * z).double().sum() for k, z in probes.items()])


def _hutchinson(risk: Risk, tolerances: Tolerances, max_passes: int, seed: int,
                linear: tuple[bool, ...] | None) -> Traces:
    def one(batch: Batch, number: int) -> Tensor:
        g = batch_generator("trace", seed, number, batch)
        return hutchinson(risk, batch, {k: rademacher(tuple(w.shape), g).to(w) for k, w in risk.weights.items()})
    mean = StratifiedMean(risk.batches.size)
    for number in progress(range(max(2, max_passes)), "trace", max_passes):
        mean.add(risk.engine.batch_sums(lambda batch, number=number: one(batch, number), risk.batches))
        if mean.degrees_of_freedom >= MIN_DEGREES_OF_FREEDOM:
            excess = tolerances.excess(mean.value, mean.covariance)
            if (excess <= 1).all():
                break
    return Traces(mean.value, mean.covariance, mean.passes, "hutchinson", linear)


def _pyhessian(risk: Risk, tolerances: Tolerances, max_passes: int, seed: int) -> Traces:
    """Probes of PyHessian until precise: ten at a time, each for all the data."""
    probes = torch.empty(0, len(risk.layers), dtype=torch.float64)
    while len(probes) < max(2, max_passes):
        more = pyhessian_probes(risk, min(10, max(2, max_passes) - len(probes)), seed + len(probes))
        probes = torch.cat([probes, more])
        value, covariance = probes.mean(0), torch.cov(probes.T).reshape(len(probes.T), -1) / len(probes)
        if len(probes) > MIN_DEGREES_OF_FREEDOM and (tolerances.excess(value, covariance) <= 1).all():
            break
    return Traces(value, covariance, len(probes), "pyhessian")
