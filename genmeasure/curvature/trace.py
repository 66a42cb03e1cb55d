"""Traces of the diagonal blocks H_ii of the mean loss, per layer and in total."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from genmeasure.curvature.draws import batch_generator, generator, rademacher
from genmeasure.curvature.gauss_newton import (
    class_directions,
    eigen_directions,
    linear_layers,
    untapped_squared_gradients,
)
from genmeasure.curvature.products import batch_hessian_product
from genmeasure.curvature.sampling import Total, doubled, estimated_total, inclusion_probabilities, systematic_sample
from genmeasure.curvature.taps import SHARE, Probe, Taps, find_taps, second_derivatives, squared_gradients
from genmeasure.data.batches import Batch, gather
from genmeasure.engine import progress
from genmeasure.errors import InputError, unknown
from genmeasure.estimate import MIN_DEGREES_OF_FREEDOM, Estimate, StratifiedMean
from genmeasure.layers import Layer
from genmeasure.risk import FORWARD, Risk

ROUTES = ("gauss-newton", "split", "hutchinson", "pyhessian")
EIGEN_OUTPUTS = 32
"""Up to this many outputs the output Hessian is decomposed; beyond, directions stand for classes."""
MOST_NUMBERS = 2**27
"""Directions and their sizes are kept in memory up to this many numbers."""
FIRST_PAIRS = 128
"""Pairs of an example and a direction in the first sample."""
REPLICATES, FIRST_DRAWS, GATHERED = 24, 8, 1024
"""Independent samples of random directions, examples of each at first, examples gathered at a time."""
JOINT_COST, ALONE_COST = 10.0, 3.5
"""What a draw costs with all layers at once, and with one layer on average, in forward passes of an example."""


@dataclass(frozen=True)
class Traces:
    """Tr H_ii [layers] of the mean loss, the covariance [layers, layers] of the estimates, and how they were got.

    draws: (example, direction) pairs and random probes that were evaluated, or examples where nothing was drawn.
    linear: for every layer whether the outputs are piecewise linear in its weights; None where nobody looked.
    """

    value: Tensor
    covariance: Tensor
    draws: int
    route: str
    linear: tuple[bool, ...] | None = None

    def estimate(self, weights: Tensor | None = None) -> Estimate:
        """The sum over layers, weighted by `weights` [layers] if given; correlations are accounted for."""
        w = torch.ones_like(self.value) if weights is None else weights
        variance = (w @ self.covariance @ w).clamp(min=0)
        return Estimate((w @ self.value).item(), variance.sqrt().item(), self.draws)


class Part(Protocol):
    """A sampled summand of the traces that can be made more precise."""

    draws: int

    @property
    def total(self) -> Total:
        """The estimate [layers] so far, of the mean over examples."""

    @property
    def trusted(self) -> bool:
        """Whether there are enough draws for the standard error to be believed."""

    @property
    def finished(self) -> bool:
        """Whether no more can be drawn."""

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
    `max(atol, layer_rtol * |value|)`, when everything was taken and the result is exact, or after `max_passes` draws
    per example on average. Raises `InputError` for an unknown route or one that this network or loss does not allow.
    """
    if route not in ("auto", *ROUTES):
        raise unknown("route", route, ["auto", *ROUTES])
    if not (gauss_newton or risk.twice_differentiable):
        raise AssertionError("the check raises")
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
    return Traces(value, covariance, sum(p.draws for p in parts), found, linear)


@dataclass(frozen=True)
class Tolerances:
    """What is watched: every layer and the total, [layers + 1]."""

    layers: int
    rtol: float
    layer_rtol: float
    atol: float

    @property
    def watch(self) -> Tensor:
        """[layers + 1, layers]"""
        return torch.cat([torch.eye(self.layers), torch.ones(1, self.layers)]).double()

    def excess(self, value: Tensor, covariance: Tensor) -> Tensor:
        """Variance over the variance that is allowed, [layers + 1]; above 1 or nan where precision is short."""
        w = self.watch
        rtol = torch.tensor([self.layer_rtol] * self.layers + [self.rtol], dtype=torch.float64)
        allowed = (rtol * (w @ value).abs()).clamp(min=self.atol).square()
        variance = ((w @ covariance) * w).sum(1).clamp(min=0)
        return torch.where(variance == 0, 0.0, variance / allowed)


def _until_precise(parts: Sequence[Part], tolerances: Tolerances) -> tuple[Tensor, Tensor]:
    for part in parts:
        part.extend(torch.full((tolerances.layers + 1,), torch.inf))
    for _ in progress(itertools.count(), "trace"):
        totals = [part.total for part in parts]
        value, covariance = sum(t.value for t in totals), sum(t.covariance for t in totals)
        excess = tolerances.excess(value, covariance)
        short = ~(excess <= 1)
        open_ = [i for i, part in enumerate(parts) if not part.finished and (short.any() or not part.trusted)]
        if not open_:
            return value, covariance
        watch = short if short.any() else torch.ones_like(short)
        shares = [tolerances.excess(value, totals[i].covariance)[watch].nan_to_num(torch.inf).max() for i in open_]
        worst = max(range(len(open_)), key=lambda i: (not parts[open_[i]].trusted, shares[i]))
        if shares[worst] == 0:  # what is short is not short because of what can still be drawn
            return value, covariance
        parts[open_[worst]].extend(excess.nan_to_num(torch.inf))
    raise AssertionError("counting ends only by return")


def _parts(risk: Risk, taps: Taps | None, linear: Sequence[bool], max_passes: int, seed: int) -> list[Part]:
    """The Gauss-Newton part, and the residual of the layers in which the outputs are not linear."""
    curved = [i for i, flat in enumerate(linear) if not flat]
    if curved and taps is None:
        raise InputError("some weights are used by operations that cannot be tapped, so that the residual H - G cannot "
                         "be drawn example by example; take route=hutchinson")
    survey = _survey(risk, eigen=_takes_eigen(risk))
    limit = max_passes * risk.batches.size
    if survey.directions is None and survey.sizes.shape[1] == 1 and risk.loss.softmax_rows:
        if taps is None:
            raise InputError("some weights are used by operations that cannot be tapped, which drawing labels for this "
                             "many outputs needs; take route=hutchinson")
        parts: list[Part] = [Labels(risk, taps, survey.sizes[:, 0], limit, seed)]
    else:
        parts = [Pairs(risk, taps, survey, limit, seed)]
    if curved and survey.slopes.any():
        parts.append(Residual(risk, taps, survey.slopes, curved, limit, seed))
    return parts


@dataclass(frozen=True)
class Survey:
    """What one forward pass tells of every example.

    sizes: eigenvalues of its output Hessian, or weights of classes in it [examples, directions]; a single column holds
    its trace, for outputs too many to tell apart. directions: eigenvectors [examples, directions, outputs] or None.
    slopes: norm of the loss's gradient with respect to the outputs [examples].
    """

    sizes: Tensor
    directions: Tensor | None
    slopes: Tensor


@torch.no_grad()
def _outputs_of_one(risk: Risk) -> Tensor:
    return risk.outputs({}, risk.place(next(iter(risk.batches)).select(slice(1))))


def _takes_eigen(risk: Risk) -> bool:
    one = _outputs_of_one(risk)
    k = one.numel()
    return one.ndim == 2 and k <= EIGEN_OUTPUTS and risk.batches.size * k * k <= MOST_NUMBERS


@torch.no_grad()
def _survey(risk: Risk, eigen: bool) -> Survey:
    one = _outputs_of_one(risk)
    if not eigen and risk.loss.softmax_rows is None:
        raise InputError(f"the loss {risk.loss.name!r} on {one.numel()} outputs has an output Hessian too large to "
                         "decompose; take route=hutchinson")
    k = one.numel()
    apart = eigen or (one.ndim == 2 and risk.batches.size * k <= MOST_NUMBERS)

    def rows(batch: Batch) -> Tensor:
        batch = risk.place(batch)
        risk.spend(FORWARD, len(batch))
        outputs = risk.outputs({}, batch).double()
        risk.checked(risk.loss(outputs, batch.targets), batch, "loss")
        with torch.enable_grad():
            point = outputs.detach().requires_grad_()
            (slope,) = torch.autograd.grad(risk.scale * risk.loss(point, batch.targets).sum(), point)
        slopes = slope.flatten(1).norm(dim=1, keepdim=True)
        if eigen:
            sizes, vectors = eigen_directions(risk, outputs, batch.targets)
            return torch.cat([slopes, sizes, vectors.mT.flatten(1)], 1)
        logits, mask = risk.loss.softmax_rows(outputs, batch.targets)
        p = logits.softmax(-1)
        concentration = p.square().sum(-1, keepdim=True)
        if apart:
            sizes = risk.scale * (p * (1 - 2 * p + concentration) * mask[..., None]).flatten(1)
        else:
            sizes = risk.scale * ((1 - concentration[..., 0]) * mask).sum(1, keepdim=True)
        return torch.cat([slopes, sizes], 1)
    table = risk.engine.examples(rows, risk.batches)
    slopes, sizes = table[:, 0], table[:, 1:1 + k] if apart else table[:, 1:]
    directions = table[:, 1 + k:].unflatten(1, (k, k)).to(risk.dtype) if eigen else None
    return Survey(sizes, directions, slopes)


NEGLIGIBLE = 1e-13
"""Weights of directions this small beside the example's largest are rounding of a direction that has none."""


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
        return Total(found.value / n, found.covariance / n**2, found.uncertain)

    @property
    def trusted(self) -> bool:
        return self.measured.all() or self.total.uncertain > MIN_DEGREES_OF_FREEDOM

    @property
    def finished(self) -> bool:
        return self.count >= min(self.limit, len(self.signed))

    def extend(self, excess: Tensor) -> None:
        factor = min(2.0, max(1.25, 1.1 * excess.max().item()))
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
            batches = self.risk.batches.gather(self.examples[pairs])
            return self.risk.engine.examples(lambda b: self._of(b, pairs[b.rows][None])[0], batches).double()
        most = int(place.bincount().max())
        table = torch.full((most, len(examples)), -1)
        rank = torch.arange(len(pairs)) - torch.searchsorted(place, place)
        table[rank, place] = pairs
        batches = self.risk.batches.gather(examples)
        found = self.risk.engine.examples(lambda b: self._of(b, table[:, b.rows]).transpose(0, 1), batches).double()
        return found[place, rank]

    def _of(self, batch: Batch, pairs: Tensor) -> Tensor:
        """[D, b, layers] for pairs [D, b], -1 where an example has none."""
        used = pairs[(pairs >= 0).any(1)]

        def directions(outputs: Tensor) -> Tensor:
            chosen = self.which[used].to(outputs.device)
            if self.survey.directions is not None:
                vectors = self.survey.directions[self.examples[used], self.which[used]].to(outputs)
            else:
                vectors = class_directions(self.risk, outputs, batch.targets.to(outputs.device), chosen)
            return torch.where((used >= 0).to(outputs.device)[..., None], vectors, 0.0)
        found = _squared_gradients(self.risk, self.taps, batch, directions)
        return torch.cat([found, found.new_zeros(len(pairs) - len(used), *found.shape[1:])])


def _squared_gradients(risk: Risk, taps: Taps | None, batch: Batch, directions: Callable[[Tensor], Tensor]) -> Tensor:
    if taps is not None:
        return squared_gradients(risk, taps, batch, directions)
    return untapped_squared_gradients(risk, batch, directions)


Evaluation = Callable[[Batch], Tensor]
"""batch -> [batch, k], a draw for each of its examples; `batch.rows` numbers the draws."""


class Replicates:
    """A mean over examples of what is drawn anew each time, from independent samples that grow by doubling.

    Every sample draws examples with probability proportional to `sizes` [examples], systematically with a random start,
    and evaluates each on draws of its own; the larger it is, the less do differences between examples matter. The
    spread between the samples gives the standard error.
    """

    def __init__(self, risk: Risk, sizes: Tensor, seed: int, purpose: str,
                 evaluation: Callable[[torch.Generator, int], Evaluation]):
        self.risk, self.sizes, self.seed = risk, sizes.double(), seed
        self.purpose, self.evaluation = purpose, evaluation
        draws = generator(f"trace {purpose}", seed)
        self.starts = torch.rand(REPLICATES, generator=draws, dtype=torch.float64).tolist()
        self.count = self.stage = 0
        self.sums: Tensor | None = None

    @property
    def draws(self) -> int:
        return self.count * REPLICATES

    @property
    def values(self) -> Tensor:
        """[replicates, k]"""
        return self.sums * self.sizes.sum() / (self.count * self.risk.batches.size)

    def extend(self) -> None:
        """The first samples, and then twice as many draws each."""
        starts, after = zip(*map(doubled, self.starts), strict=True) if self.count else (self.starts, self.starts)
        count = self.count or FIRST_DRAWS
        samples = [systematic_sample(self.sizes, count, start) for start in starts]
        group = max(1, GATHERED // count)
        found = []
        for i in range(0, REPLICATES, group):
            union = torch.cat(samples[i:i + group]).unique()
            pieces = self.risk.batches.gather(union)
            found += [self._evaluated(j, samples[j], union, pieces) for j in range(i, min(i + group, REPLICATES))]
        self.sums = torch.stack(found) + (0 if self.sums is None else self.sums)
        self.count, self.starts, self.stage = self.count + count, list(after), self.stage + 1

    def _evaluated(self, replicate: int, sample: Tensor, union: Tensor, pieces: list[Batch]) -> Tensor:
        draws = generator(f"trace {self.purpose}", self.seed, replicate, self.stage)
        limit = max(1, max(self.risk.batches.lengths) // SHARE)
        batches = gather(pieces, torch.searchsorted(union, sample), limit)
        values = self.risk.engine.examples(self.evaluation(draws, len(sample)), batches).double()
        return (values / self.sizes[sample][:, None]).sum(0)


class Labels:
    """Tr G_ii for many softmax rows: squared gradients with labels drawn from the model's own probabilities.

    The rows' labels are independent and their gradients have mean zero, so one gradient of an example's total serves
    all its rows (the Fisher information).
    """

    trusted = True

    def __init__(self, risk: Risk, taps: Taps, sizes: Tensor, limit: int, seed: int):
        self.risk, self.taps, self.limit = risk, taps, limit
        self.replicates = Replicates(risk, sizes, seed, "labels", self._evaluation)

    @property
    def draws(self) -> int:
        return self.replicates.draws

    @property
    def total(self) -> Total:
        values = self.replicates.values
        return Total(values.mean(0), torch.cov(values.T).reshape(2 * [values.shape[1]]) / len(values), self.draws)

    @property
    def finished(self) -> bool:
        return 2 * self.draws > self.limit

    def extend(self, excess: Tensor) -> None:
        self.replicates.extend()

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
            return squared_gradients(risk, self.taps, batch, directions)[0]
        return norms


class Residual:
    """Tr (H - G)_ii by z' (H - G)_ii z, every draw of an example along its own random direction z.

    The residual is the slope of the loss times second derivatives of the outputs; examples are drawn by that slope.
    First all layers at once, with cross-layer blocks that vanish in the mean but not in the variance. Layers that need
    more precision, and those that make the total uncertain, are then drawn one by one, without these blocks.
    """

    trusted = True

    def __init__(self, risk: Risk, taps: Taps, slopes: Tensor, rows: Sequence[int], limit: int, seed: int):
        self.risk, self.taps, self.slopes, self.limit, self.seed = risk, taps, slopes, limit, seed
        self.rows = list(rows)
        self.joint = self._replicates(self.rows, "residual")
        self.single: dict[int, Replicates] = {}

    def _replicates(self, rows: Sequence[int], purpose: str) -> Replicates:
        layers = [self.risk.layers[i] for i in rows]
        return Replicates(self.risk, self.slopes, self.seed, purpose, lambda g, n: self._evaluation(layers, g, n))

    @property
    def draws(self) -> int:
        return self.joint.draws + sum(r.draws for r in self.single.values())

    @property
    def total(self) -> Total:
        k = len(self.risk.layers)
        values = torch.zeros(REPLICATES, k, dtype=torch.float64)
        values[:, self.rows] = self.joint.values
        for row in self.single:
            values[:, row] = 0
        value, covariance = values.mean(0), torch.cov(values.T).reshape(k, k) / REPLICATES
        for row, replicates in self.single.items():  # independent of all others
            own = replicates.values[:, 0]
            value[row], covariance[row, row] = own.mean(), own.var() / REPLICATES
        return Total(value, covariance, self.draws)

    @property
    def finished(self) -> bool:
        return self.joint.count > 0 and 2 * self.draws > self.limit

    def extend(self, excess: Tensor) -> None:
        """excess: [layers + 1], how many times larger than allowed each variance is."""
        short = [i for i in self.rows if not excess[i] <= 1]
        alone = [i for i in short if i not in self.single]
        if not self.joint.count or not short or self._dearer(excess, alone):
            return self.joint.extend()
        for i in short:
            if i not in self.single:
                self.single[i] = self._replicates([i], f"residual {self.risk.layers[i].name}")
            self.single[i].extend()

    def _dearer(self, excess: Tensor, rows: Sequence[int]) -> bool:
        """Whether to begin with these layers one by one costs more than to draw enough of all layers at once."""
        worst = max((min(float(excess[i]), 1e9) for i in rows), default=1.0)
        return len(rows) * FIRST_DRAWS * REPLICATES * ALONE_COST > (worst - 1) * self.joint.draws * JOINT_COST > 0

    def _evaluation(self, layers: Sequence[Layer], draws: torch.Generator, count: int) -> Evaluation:
        risk, probes = self.risk, {}
        for layer in layers:
            out, into = self.taps.features[layer.name]
            shapes = (tuple(risk.weights[layer.name].shape), (count, out), (count, into))
            probes[layer.name] = [rademacher(shape, draws) for shape in shapes]

        def linearised(outputs: Tensor, batch: Batch) -> Tensor:
            point = outputs.detach().requires_grad_()
            (slope,) = torch.autograd.grad(risk.scale * risk.loss(point, batch.targets).sum(), point)
            return (slope * outputs).flatten(1).sum(1)

        def forms(batch: Batch) -> Tensor:
            mine = {name: Probe(*(t.to(risk.device, risk.dtype) for t in (v, out[batch.rows], into[batch.rows])))
                    for name, (v, out, into) in probes.items()}
            return second_derivatives(risk, self.taps, batch, mine, linearised)
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
    from genmeasure.curvature.other_tools import pyhessian_probes
    probes = torch.empty(0, len(risk.layers), dtype=torch.float64)
    while len(probes) < max(2, max_passes):
        more = pyhessian_probes(risk, min(10, max(2, max_passes) - len(probes)), seed + len(probes))
        probes = torch.cat([probes, more])
        value, covariance = probes.mean(0), torch.cov(probes.T).reshape(len(probes.T), -1) / len(probes)
        if len(probes) > MIN_DEGREES_OF_FREEDOM and (tolerances.excess(value, covariance) <= 1).all():
            break
    return Traces(value, covariance, len(probes), "pyhessian")
