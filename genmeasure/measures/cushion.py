"""Cushions, contraction and smoothness: how a network damps the noise of its layers (Arora et al. 2018)."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from genmeasure.curvature.draws import generator, rademacher
from genmeasure.data.batches import Batch
from genmeasure.errors import InputError
from genmeasure.estimate import Estimate
from genmeasure.norms import frobenius, lengths
from genmeasure.registry import measure
from genmeasure.risk import FORWARD, GRADIENT
from genmeasure.subject import Subject

PROBES, EXAMPLES = 8, 64


@dataclass(frozen=True)
class Cushion:
    """Of one layer, over the examples scanned.

    layer: mu_i, the smallest |A phi| / (|A|_F |phi|). interlayer: mu_i->, over later layers j too the smallest
    |J x| / (|J|_F |x|), times the root of the number of positions of a feature map. contraction: c_i, the largest
    |x| / |activation(x)|. spread: beta^2, the largest share of |J|_F^2 that a position has, relative to an equal one.
    """

    layer: float
    interlayer: Estimate
    contraction: float
    spread: Estimate


@contextlib.contextmanager
def _heard(subject: Subject, added: Mapping[str, Tensor] | None = None,
           hooks: Mapping[str, Callable[[Tensor], Tensor]] | None = None) -> Iterator[tuple[dict, dict]]:
    """Inputs and pre-activations (behind the BatchNorm) of every layer by name, while the context lasts.

    added: noise to add to the pre-activations of a layer. hooks: what becomes of the gradient that arrives at a layer's
    pre-activations from what follows them.
    """
    model, into, out, handles = subject.model, {}, {}, []
    for layer in subject.layers:
        end = model.get_submodule(layer.batch_norm) if layer.batch_norm else layer.module
        handles.append(layer.module.register_forward_hook(
            lambda _, x, __, k=layer.name: into.__setitem__(k, x[0])))

        def listen(_: object, __: object, y: Tensor, k: str = layer.name) -> Tensor | None:
            if added and k in added:
                y = y + added[k]
            out[k] = y
            handed_on = y.clone()  # an activation in place must not change what was heard
            if hooks and k in hooks:
                handed_on.register_hook(hooks[k])
            return handed_on
        handles.append(end.register_forward_hook(listen))
    try:
        yield into, out
    finally:
        for handle in handles:
            handle.remove()


def scanned(subject: Subject, examples: int) -> Batch:
    """The first `examples` training examples as one batch, of sequences those as long as the first ones."""
    subject.risk.check_precision()
    found = subject.train.gather(torch.arange(min(examples, subject.train.size)))
    return subject.risk.place(functools.reduce(Batch.joined, [b for b in found if b.alike(found[0])]))


def _weights(subject: Subject) -> dict[str, Tensor]:
    """All layers' weights as leaves, so that a forward pass makes a graph."""
    return {k: w.detach().requires_grad_() for k, w in subject.risk.weights.items()}


@torch.enable_grad()
def damping(subject: Subject, batch: Batch) -> dict[str, float]:
    """Powers of two by which gradients are multiplied where they arrive at a layer's pre-activations, by its name.

    With them a gradient from the outputs keeps its size through any number of layers; a ratio of norms of J' u and J x
    for the same Jacobian J does not see them. Empty where gradients go around a layer, as through a residual branch:
    what meets there must not be multiplied by different numbers.
    """
    arrived: dict[str, Tensor] = {}
    factors: dict[str, float] = {}

    def damped(gradient: Tensor, name: str) -> Tensor:
        arrived[name] = gradient
        size = lengths(gradient).max().item()
        factors[name] = 2.0 ** -round(math.log2(size)) if 0 < size < math.inf else 1.0
        return gradient * factors[name]
    names = [x.name for x in subject.layers]
    hooks = {name: functools.partial(damped, name=name) for name in names[:-1]}
    with _heard(subject, hooks=hooks) as (_, out):
        subject.risk.outputs(_weights(subject), batch)
    xs = [out[k] for k in names]
    if len(xs) < 2:
        return {}
    u = rademacher(tuple(xs[-1].shape), generator("damping", 0)).to(xs[-1])
    torch.autograd.grad(xs[-1], xs[:-1], u, retain_graph=True, materialize_grads=True)
    subject.risk.spend(2 * GRADIENT, len(batch))
    if set(factors) != set(names[:-1]):
        return {}
    given = {**{k: arrived[k] * factors[k] for k in factors}, names[-1]: u}
    with torch.no_grad():
        for name, x, then, after in zip(names, xs, names[1:], xs[1:], strict=False):
            alone, = torch.autograd.grad(after, x, given[then], retain_graph=True, materialize_grads=True)
            if (alone - given[name]).abs().max() > 1e-3 * given[name].abs().max():
                return {}
    return factors


@dataclass(frozen=True)
class Between:
    """Of one layer i and all later layers j, J the Jacobian of x_j with respect to x_i.

    ratio: the smallest |J x_i| / (|J|_F |x_i|) over j and examples. spread: beta_i^2.
    """

    ratio: Estimate
    spread: Estimate


TOGETHER = 2**24
"""Numbers held at once by gradients of several probes."""


def between(batch: Batch, subject: Subject, probes: int, seed: int) -> list[Between]:
    """Over all pairs of layers and all examples of the batch.

    |J|_F^2 is the mean of u' J J' u over signs u: one stream of them finds where the ratio is smallest and where the
    spread is largest, another says how small and how large. Raises `InputError` where a Jacobian overflows.
    """
    names, risk = [x.name for x in subject.layers], subject.risk
    size, n = len(names), len(batch)
    spread: dict[int, tuple[float, Estimate]] = {}
    least = torch.full((size,), torch.inf, dtype=torch.float64)
    there, drawn = torch.zeros(size, dtype=torch.float64), torch.zeros(probes, size, dtype=torch.float64)
    hooks = {name: functools.partial(torch.mul, other=factor) for name, factor in damping(subject, batch).items()}
    with torch.enable_grad(), _heard(subject, hooks=hooks) as (_, out):
        risk.outputs(_weights(subject), batch)
        xs = [out[k] for k in names]
        along = [found.log() for found in _Forward(xs).lengths()]
        risk.spend(2 * GRADIENT * size, n)
        norms = torch.stack([lengths(x) for x in xs]).log().cpu()
        for j in range(1, size):
            looked, places = torch.zeros(probes, j, n, dtype=torch.float64), {}
            for probe, slopes in _slopes(xs, j, probes, (seed, 0)):
                looked[probe] = _row_lengths(slopes)
                for i, slope in enumerate(slopes):
                    if slope.ndim > 3:
                        places[i] = places.get(i, 0) + _by_position(slope).sum(0)
            if not looked.isfinite().all():
                raise InputError(f"the Jacobians of {names[j]!r} with respect to earlier layers overflow "
                                 f"{str(xs[j].dtype).removeprefix('torch.')}; measure with --dtype float64")
            exact = torch.stack([along[i][j - i - 1] for i in range(j)])
            ratios = (exact - _log_mean_square(looked) / 2 - norms[:j]).nan_to_num(torch.inf, torch.inf, -torch.inf)
            value, example = ratios.min(1)
            smaller, shares = value < least[:j], {i: _largest_share(each) for i, each in places.items()}
            larger = {i: where for i, (share, where) in shares.items() if share > spread.get(i, (0.0,))[0]}
            if not smaller.any() and not larger:
                continue
            again = torch.zeros(probes, j, n, dtype=torch.float64)
            share_drawn: dict[int, Tensor] = {i: torch.zeros(probes, dtype=torch.float64) for i in larger}
            for probe, slopes in _slopes(xs, j, probes, (seed, 1)):
                again[probe] = _row_lengths(slopes)
                for i, (row, position) in larger.items():
                    share_drawn[i][probe] = _by_position(slopes[i])[:, row, position]
            risk.spend((GRADIENT - FORWARD) * 2 * probes, n)
            rows = torch.arange(j)
            least[:j] = torch.where(smaller, value, least[:j])
            there[:j] = torch.where(smaller, exact[rows, example] - norms[:j][rows, example], there[:j])
            drawn[:, :j] = torch.where(smaller, again[:, rows, example], drawn[:, :j])
            for i, (row, _) in larger.items():
                whole = again[:, i, row].square().mean().item()
                if whole > 0:
                    found = Estimate.from_draws(share_drawn[i]).scaled(places[i].shape[1] / whole)
                    spread[i] = shares[i][0], found
    alone = Estimate(1.0, 0.0, n)
    return [Between(_ratio(there[i].item(), drawn[:, i]), spread.get(i, (0.0, alone))[1]) for i in range(size)]


def _slopes(xs: list[Tensor], j: int, probes: int, stream: tuple[int, int]) -> Iterator[tuple[slice, list[Tensor]]]:
    """J' u for every i < j, [probes, batch, ...], for some probes at a time; their places among all probes."""
    together = min(probes, max(1, TOGETHER // sum(x.numel() for x in xs)))
    for first in range(0, probes, together):
        part = range(first, min(first + together, probes))
        u = torch.stack([rademacher(tuple(xs[j].shape), generator("cushions", *stream, j, probe)) for probe in part])
        several = len(part) > 1
        found = torch.autograd.grad(xs[j], xs[:j], u.to(xs[j]) if several else u[0].to(xs[j]), retain_graph=True,
                                    allow_unused=True, is_grads_batched=several)
        yield slice(first, part.stop), [
            x.new_zeros(len(part), *x.shape) if g is None else g if several else g[None]
            for g, x in zip(found, xs, strict=False)]


def _row_lengths(slopes: list[Tensor]) -> Tensor:
    """Lengths of tensors [a, batch, ...] for each of the list, [a, tensors, batch]; those of one shape at once."""
    found = torch.zeros(len(slopes[0]), len(slopes), slopes[0].shape[1], dtype=torch.float64)
    shapes: dict[torch.Size, list[int]] = {}
    for i, slope in enumerate(slopes):
        shapes.setdefault(slope.shape[2:], []).append(i)
    for places in shapes.values():
        step = max(1, TOGETHER // slopes[places[0]].numel())
        for part in (places[k:k + step] for k in range(0, len(places), step)):
            stacked = torch.stack([slopes[i] for i in part], 1)
            found[:, part] = lengths(stacked.flatten(0, 2)[:, None]).reshape(stacked.shape[:3]).cpu()
    return found


def _log_mean_square(values: Tensor) -> Tensor:
    """ln of the mean square over the first axis."""
    top = values.amax(0)
    return 2 * top.log() + (values / torch.where(top > 0, top, 1.0)).square().mean(0).log()


def _ratio(log_ratio: float, drawn: Tensor) -> Estimate:
    """e^log_ratio over the root of the mean square of what was drawn [probes]; infinite where all that is zero."""
    top = drawn.max().item()
    if top == 0:
        return Estimate(math.inf)
    square = Estimate.from_draws((drawn / top).square())
    value = math.exp(log_ratio - math.log(top)) / math.sqrt(square.value)
    return Estimate(value, value * square.stderr / (2 * square.value), square.n)


def _by_position(slope: Tensor) -> Tensor:
    """Squares summed over channels, [probes, batch, positions]."""
    return slope.double().square().sum(2).flatten(2).cpu()


def _largest_share(each: Tensor) -> tuple[float, tuple[int, int]]:
    """The largest share of an example's sum that a position has, times the number of positions, and where."""
    shares = (each / each.sum(1, keepdim=True) * each.shape[1]).nan_to_num(0.0)
    return shares.max().item(), divmod(int(shares.argmax()), each.shape[1])


class _Forward:
    """J v for Jacobians J of pre-activations x_j with respect to x_i, j > i, by differentiating u -> J' u.

    xs: all pre-activations, of one forward pass with a graph.
    """

    def __init__(self, xs: list[Tensor]):
        self.xs = xs
        self.us = [torch.zeros_like(x, requires_grad=True) for x in xs[1:]]
        self.slopes = torch.autograd.grad(xs[1:], xs[:-1], self.us, create_graph=True, retain_graph=True,
                                          materialize_grads=True) if self.us else ()

    def along(self, i: int, vectors: list[Tensor]) -> list[Tensor]:
        """J v for every j > i, [vectors, ...], one after the other."""
        found = [torch.autograd.grad(self.slopes[i], self.us[i:], v, retain_graph=True, materialize_grads=True,
                                     allow_unused=True) if self.slopes[i].requires_grad else
                 [torch.zeros_like(u) for u in self.us[i:]] for v in vectors]
        return [torch.stack(each) for each in zip(*found, strict=True)]

    def lengths(self) -> list[Tensor]:
        """|J x_i| for every j > i, [j, batch], by i; many i at once where the network is narrow."""
        xs, last = self.xs, len(self.us)
        together, found = TOGETHER // sum(x.numel() for x in xs), []
        if together < 2:
            return [_row_lengths(self.along(i, [x.detach()]))[0] for i, x in enumerate(xs[:-1])]
        known = [i for i, slope in enumerate(self.slopes) if slope.requires_grad]
        for first in range(0, last, together):
            some = range(first, min(first + together, last))
            vectors = [x.new_zeros(len(some), *x.shape) for x in xs[:-1]]
            for k, i in enumerate(some):
                vectors[i][k] = xs[i].detach()
            products = torch.autograd.grad([self.slopes[i] for i in known], self.us, [vectors[i] for i in known],
                                           retain_graph=True, allow_unused=True, is_grads_batched=True)
            rows = _row_lengths([u.new_zeros(len(some), *u.shape) if p is None else p
                                 for p, u in zip(products, self.us, strict=True)])
            found += [rows[k, i:] for k, i in enumerate(some)]
        return found


def cushions(subject: Subject, *, examples: int, probes: int, seed: int) -> dict[str, Cushion]:
    """The cushions of every layer over the first `examples` examples; once per subject and setting."""
    def compute() -> dict[str, Cushion]:
        batch, layers = scanned(subject, examples), subject.layers
        with torch.no_grad(), _heard(subject) as (into, out):
            subject.risk.outputs({}, batch)
            ins, outs = dict(into), dict(out)
        later = between(batch, subject, probes, seed)
        found = {}
        for i, layer in enumerate(layers):
            positions = math.prod(layer.output_shape[1:]) if layer.convolution else 1
            itself = Estimate(math.sqrt(positions / outs[layer.name][0].numel()), 0.0, len(batch))
            ratio = later[i].ratio.scaled(math.sqrt(positions))
            found[layer.name] = Cushion(_own_cushion(subject, i, ins), min(itself, ratio, key=lambda e: e.value),
                                        _contraction(subject, i, ins, outs), later[i].spread)
        return found
    return subject.remember(f"cushions {examples} {probes} {seed}", compute)


def _own_cushion(subject: Subject, i: int, ins: dict[str, Tensor]) -> float:
    """min over examples of |A phi| / (|A|_F |phi|), A with the BatchNorm folded, without its shift."""
    layer = subject.layers[i]
    weight = subject.weight(layer, fold=True)
    x = ins[layer.name]
    with torch.no_grad():
        linear = {layer.parameter.rsplit(".", 1)[-1]: weight}
        if getattr(layer.module, "bias", None) is not None:
            linear["bias"] = torch.zeros_like(layer.module.bias)
        moved = torch.func.functional_call(layer.module, linear, (x,))
    ratios = lengths(moved) / (frobenius(weight) * lengths(x))
    return ratios[ratios.isfinite()].min().item() if ratios.isfinite().any() else 0.0


def _contraction(subject: Subject, i: int, ins: dict[str, Tensor], outs: dict[str, Tensor]) -> float:
    """max over examples of |x_i| / |phi(x_i)|, phi(x_i) what the next layer is given; 1 where that differs in shape."""
    if i + 1 == len(subject.layers):
        return 1.0
    x, after = outs[subject.layers[i].name], ins[subject.layers[i + 1].name]
    if x[0].numel() != after[0].numel():
        return 1.0
    ratios = lengths(x) / lengths(after)
    return max(1.0, ratios[ratios.isfinite()].max().item()) if ratios.isfinite().any() else 1.0


def smoothness(subject: Subject, *, examples: int, noise: float, draws: int, seed: int) -> dict[str, Estimate]:
    """rho_i: mean over draws of the smallest |eta| |x_j| / (|M(x_i + eta) - J (x_i + eta)| |x_i|) over j and examples.

    eta: Gaussian, `noise` times as long as x_i.
    """
    batch, names, risk = scanned(subject, examples), [x.name for x in subject.layers], subject.risk
    with torch.enable_grad(), _heard(subject) as (_, out):
        risk.outputs(_weights(subject), batch)
        xs, found = [out[k] for k in names], {}
        forward = _Forward(xs)
    long = [lengths(x) for x in xs]
    together = min(draws, max(1, TOGETHER // sum(x.numel() for x in xs)))
    for i, name in enumerate(names[:-1]):
        etas, smallest = [], []
        for draw in range(draws):
            g = torch.randn(xs[i].shape, generator=generator("smoothness", seed, i, draw)).to(xs[i])
            longer = (long[i] / lengths(g)).to(g)
            etas.append(noise * longer.reshape(-1, *[1] * (g.ndim - 1)) * g)
        with torch.enable_grad():
            lines = forward.along(i, [xs[i].detach() + eta for eta in etas])
        for first in range(0, draws, together):
            some = etas[first:first + together]
            with torch.no_grad(), _heard(subject, {name: torch.cat(some)}) as (_, out):
                risk.outputs({}, functools.reduce(Batch.joined, [batch] * len(some)))
            gaps = [(out[k].reshape(len(some), *line.shape[1:]) - line[first:first + len(some)]).flatten(0, 1)
                    for k, line in zip(names[i + 1:], lines, strict=True)]
            apart = _row_lengths([gap[None] for gap in gaps])[0].unflatten(1, (len(some), -1))
            limit = noise * torch.stack(long[i + 1:]).cpu()[:, None]
            smallest += (limit / apart).amin((0, 2)).tolist()
        risk.spend((FORWARD + GRADIENT) * draws + GRADIENT, len(batch))
        if all(map(math.isfinite, smallest)):
            found[name] = Estimate.from_draws(smallest)
    return found


def plain_network(subject: Subject) -> str | None:
    """None where every layer runs as a module with one tensor in and one out."""
    silent = next((x.name for x in subject.layers if not x.input_shape or not x.output_shape), None)
    return None if silent is None else f"the layer {silent!r} does not run as a module of its own"


@measure("cushion", index=("layer", "term"), costly=True, defined=plain_network,
         source="Arora et al. 2018, arXiv:1802.05296, Definitions 4-7")
def cushion(subject: Subject, *, examples: int = EXAMPLES, probes: int = PROBES, noise: float = 0.1, draws: int = 4,
            seed: int = 0) -> dict[tuple[str, str], Estimate]:
    """Layer cushion, interlayer cushion, activation contraction and interlayer smoothness of every layer.

    Over the first `examples` training examples, pre-activations taken behind the BatchNorm. `layer-cushion`: smallest
    |A phi| / (|A|_F |phi|). `interlayer-cushion`: smallest |J x| / (|J|_F |x|) over this and all later layers, for
    convolutions times the root of the number of positions; |J|_F from `probes` signs, drawn anew at the smallest.
    `contraction`: largest |x| / |activation(x)| (1 where pooling stands between). `spread`: beta^2, by how much one
    position's squared Jacobian exceeds an equal share (1 without positions). `smoothness`: for Gaussian noise
    `noise` times as long as x, the smallest rho over later layers and examples, its mean over `draws`; the theorem
    wants three times the depth. Left out for the last layer and where the later layers are linear.
    """
    if examples < 1 or probes < 2 or draws < 2 or noise <= 0:
        raise InputError(f"examples={examples}, probes={probes}, draws={draws} and noise={noise} came; give at least "
                         "one example, two probes, two draws and a positive length")
    result = {}
    for name, found in cushions(subject, examples=examples, probes=probes, seed=seed).items():
        n = min(examples, subject.train.size)
        result[name, "layer-cushion"] = Estimate(found.layer, 0.0, n)
        result[name, "interlayer-cushion"] = found.interlayer
        result[name, "contraction"] = Estimate(found.contraction, 0.0, n)
        result[name, "spread"] = found.spread
    drawn = smoothness(subject, examples=examples, noise=noise, draws=draws, seed=seed)
    return result | {(name, "smoothness"): value for name, value in drawn.items()}
