"""Cushions, contraction and smoothness: how a network damps the noise of its layers (Arora et al. 2018)."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from genmeasure.curvature.draws import generator, rademacher
from genmeasure.data.batches import Batch
from genmeasure.errors import InputError
from genmeasure.estimate import Estimate
from genmeasure.norms import frobenius
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
def _heard(subject: Subject, added: dict[str, Tensor] | None = None) -> Iterator[tuple[dict, dict]]:
    """Inputs and pre-activations (behind the BatchNorm) of every layer by name, while the context lasts.

    added: noise to add to the pre-activations of a layer.
    """
    model, into, out, hooks = subject.model, {}, {}, []
    for layer in subject.layers:
        end = model.get_submodule(layer.batch_norm) if layer.batch_norm else layer.module
        hooks.append(layer.module.register_forward_hook(
            lambda _, x, __, k=layer.name: into.__setitem__(k, x[0])))

        def listen(_: object, __: object, y: Tensor, k: str = layer.name) -> Tensor | None:
            if added and k in added:
                y = y + added[k]
            out[k] = y
            return y.clone()  # an activation in place must not change what was heard
        hooks.append(end.register_forward_hook(listen))
    try:
        yield into, out
    finally:
        for hook in hooks:
            hook.remove()


def _norms(x: Tensor) -> Tensor:
    """Euclidean norm of every example, [batch], float64."""
    return x.detach().flatten(1).double().norm(dim=1).cpu()


def scanned(subject: Subject, examples: int) -> Batch:
    """The first `examples` training examples as one batch, of sequences those as long as the first ones."""
    found = subject.train.gather(torch.arange(min(examples, subject.train.size)))
    return subject.risk.place(functools.reduce(Batch.joined, [b for b in found if b.alike(found[0])]))


@dataclass(frozen=True)
class Jacobians:
    """Of every pair i < j of layers and every example, for J the Jacobian of x_j with respect to x_i.

    exact: |J x_i|, [L, L, batch]. looked and drawn: u' J J' u for signs u in the space of x_j, whose mean is |J|_F^2,
    from two independent streams, [probes, L, L, batch]. norms: |x_i|, [L, batch]. spread: beta_i^2 by layer, found by
    the first stream and estimated by the second.
    """

    exact: Tensor
    looked: Tensor
    drawn: Tensor
    norms: Tensor
    spread: dict[int, Estimate]


def jacobians(batch: Batch, subject: Subject, probes: int, seed: int) -> Jacobians:
    names, risk = [x.name for x in subject.layers], subject.risk
    size = len(names)
    exact = torch.zeros(size, size, len(batch), dtype=torch.float64)
    looked, drawn = (torch.zeros(probes, size, size, len(batch), dtype=torch.float64) for _ in range(2))
    most: dict[int, float] = {}
    spread: dict[int, Estimate] = {}
    with torch.enable_grad(), _heard(subject) as (_, out):
        risk.outputs({k: w.detach().requires_grad_() for k, w in risk.weights.items()}, batch)
        xs = [out[k] for k in names]

        def slopes(j: int, stream: int, probe: int) -> tuple[Tensor, ...]:
            """J' u for every i < j."""
            u = rademacher(tuple(xs[j].shape), generator("cushions", seed, stream, j, probe)).to(xs[j])
            risk.spend(GRADIENT - FORWARD, len(batch))
            return torch.autograd.grad(xs[j], xs[:j], u, retain_graph=True, materialize_grads=True)
        for j in range(1, size):
            places: dict[int, Tensor] = {}
            for probe in range(probes):
                for i, slope in enumerate(slopes(j, 0, probe)):
                    looked[probe, i, j] = _norms(slope) ** 2
                    if slope.ndim > 2:
                        places[i] = places.get(i, 0) + _by_position(slope)
            where = {i: _largest_share(each) for i, each in places.items()}
            there: dict[int, list[float]] = {i: [] for i in where}
            for probe in range(probes):
                for i, slope in enumerate(slopes(j, 1, probe)):
                    drawn[probe, i, j] = _norms(slope) ** 2
                    if i in where:
                        there[i].append(_by_position(slope)[where[i][1]].item())
            for i, (share, (example, _)) in where.items():
                whole = drawn[:, i, j, example].mean().item()
                if share > most.get(i, 0.0) and whole > 0:
                    most[i] = share
                    spread[i] = Estimate.from_draws(there[i]).scaled(places[i].shape[1] / whole)
        for i in range(size - 1):
            along = _along(xs, i, xs[i].detach())
            risk.spend(2 * GRADIENT, len(batch))
            for j, jx in enumerate(along, i + 1):
                exact[i, j] = _norms(jx)
        norms = torch.stack([_norms(x) for x in xs])
    return Jacobians(exact, looked, drawn, norms, spread)


def _by_position(slope: Tensor) -> Tensor:
    """Squares summed over channels, [batch, positions]."""
    return slope.double().square().sum(1).flatten(1).cpu()


def _largest_share(each: Tensor) -> tuple[float, tuple[int, int]]:
    """The largest share of an example's sum that a position has, times the number of positions, and where."""
    shares = (each / each.sum(1, keepdim=True) * each.shape[1]).nan_to_num(0.0)
    return shares.max().item(), divmod(int(shares.argmax()), each.shape[1])


def _along(xs: list[Tensor], i: int, vector: Tensor) -> tuple[Tensor, ...]:
    """J vector for the Jacobian of every x_j, j > i, with respect to x_i, by differentiating u -> J' u."""
    us = [torch.zeros_like(x, requires_grad=True) for x in xs[i + 1:]]
    (slope,) = torch.autograd.grad(xs[i + 1:], xs[i], us, create_graph=True, retain_graph=True, materialize_grads=True)
    return torch.autograd.grad((slope * vector).sum(), us, retain_graph=True, materialize_grads=True,
                               allow_unused=True)


def cushions(subject: Subject, *, examples: int, probes: int, seed: int) -> dict[str, Cushion]:
    """The cushions of every layer over the first `examples` examples; once per subject and setting."""
    def compute() -> dict[str, Cushion]:
        batch, layers = scanned(subject, examples), subject.layers
        with torch.no_grad(), _heard(subject) as (into, out):
            subject.risk.outputs({}, batch)
            ins, outs = dict(into), dict(out)
        j = jacobians(batch, subject, probes, seed)
        found = {}
        for i, layer in enumerate(layers):
            positions = math.prod(layer.output_shape[1:]) if layer.convolution else 1
            alone = Estimate(math.sqrt(positions / outs[layer.name][0].numel()), 0.0, len(batch))
            later = _smallest(j, i, math.sqrt(positions)) if i + 1 < len(layers) else alone
            found[layer.name] = Cushion(_own_cushion(subject, i, ins), min(alone, later, key=lambda e: e.value),
                                        _contraction(subject, i, ins, outs),
                                        j.spread.get(i, Estimate(1.0, 0.0, len(batch))))
        return found
    return subject.remember(f"cushions {examples} {probes} {seed}", compute)


def _smallest(j: Jacobians, i: int, factor: float) -> Estimate:
    """The interlayer cushion of layer i: where the first stream finds it smallest, by the second."""
    ratios = j.exact[i, i + 1:] ** 2 / (j.looked[:, i, i + 1:].mean(0) * j.norms[i] ** 2)
    layer, example = divmod(int(ratios.nan_to_num(torch.inf).argmin()), ratios.shape[1])
    frobenius_squared = Estimate.from_draws(j.drawn[:, i, i + 1 + layer, example])
    if frobenius_squared.value == 0 or j.norms[i, example] == 0:
        return Estimate(math.inf)
    value = factor * j.exact[i, i + 1 + layer, example].item() / (
        j.norms[i, example].item() * math.sqrt(frobenius_squared.value))
    return Estimate(value, value * frobenius_squared.stderr / (2 * frobenius_squared.value), frobenius_squared.n)


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
    ratios = _norms(moved) / (frobenius(weight) * _norms(x))
    return ratios[ratios.isfinite()].min().item() if ratios.isfinite().any() else 0.0


def _contraction(subject: Subject, i: int, ins: dict[str, Tensor], outs: dict[str, Tensor]) -> float:
    """max over examples of |x_i| / |phi(x_i)|, phi(x_i) what the next layer is given; 1 where that differs in shape."""
    if i + 1 == len(subject.layers):
        return 1.0
    x, after = outs[subject.layers[i].name], ins[subject.layers[i + 1].name]
    if x[0].numel() != after[0].numel():
        return 1.0
    ratios = _norms(x) / _norms(after)
    return max(1.0, ratios[ratios.isfinite()].max().item()) if ratios.isfinite().any() else 1.0


def smoothness(subject: Subject, *, examples: int, noise: float, draws: int, seed: int) -> dict[str, Estimate]:
    """rho_i: mean over draws of the smallest |eta| |x_j| / (|M(x_i + eta) - J (x_i + eta)| |x_i|) over j and examples.

    eta: Gaussian, `noise` times as long as x_i.
    """
    batch, names, risk = scanned(subject, examples), [x.name for x in subject.layers], subject.risk
    found = {}
    for i, name in enumerate(names[:-1]):
        smallest = []
        for draw in range(draws):
            with torch.enable_grad(), _heard(subject) as (_, out):
                risk.outputs({k: w.detach().requires_grad_() for k, w in risk.weights.items()}, batch)
                xs = [out[k] for k in names]
                g = torch.randn(xs[i].shape, generator=generator("smoothness", seed, i, draw)).to(xs[i])
                longer = (_norms(xs[i]) / _norms(g)).to(g)
                eta = noise * longer.reshape(-1, *[1] * (g.ndim - 1)) * g
                along = _along(xs, i, xs[i].detach() + eta)
                before = [x.detach() for x in xs]
            with torch.no_grad(), _heard(subject, {name: eta}) as (_, out):
                risk.outputs({}, batch)
                after = [out[k] for k in names[i + 1:]]
            risk.spend(2 * FORWARD + 2 * GRADIENT, len(batch))
            ratios = [noise * _norms(x) / _norms(y - line.detach())
                      for x, y, line in zip(before[i + 1:], after, along, strict=True)]
            smallest.append(torch.stack(ratios).min().item())
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
