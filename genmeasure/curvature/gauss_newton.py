"""Gauss-Newton blocks G_ii = J_i' A J_i, and when they are the Hessian blocks.

J_i is the Jacobian of an example's outputs with respect to the weights of layer i, A the Hessian of its loss with
respect to its outputs. Where the outputs are piecewise linear in each weight tensor alone (every ReLU network),
H_ii = G_ii almost everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import hessian, jvp, vjp, vmap

from genmeasure.curvature.higher_order import directional
from genmeasure.data.batches import Batch
from genmeasure.errors import InputError
from genmeasure.layers import Layer
from genmeasure.risk import FORWARD, GRADIENT, Risk

CHUNK = 2**26
"""Numbers held at once by per-example gradients."""


def output_hessian(risk: Risk, outputs: Tensor, targets: Tensor) -> Tensor:
    """A [batch, k, k] for outputs [batch, k]; diag(p) - pp' for the cross-entropy."""
    return vmap(hessian(lambda f, y: risk.loss(f[None], y[None])[0]))(outputs, targets)


def along(risk: Risk, layer: Layer, direction: Tensor, batch: Batch, function: Callable) -> Callable[[Tensor], Tensor]:
    """a -> function({layer: W + a * direction}, batch)."""
    return lambda a: function({layer.name: risk.weights[layer.name] + a * direction}, batch)


@torch.no_grad()
def linear_layers(risk: Risk, seed: int = 0, examples: int = 8) -> tuple[bool, ...]:
    """For every layer whether the outputs are piecewise linear in its weights alone, so that H_ii = G_ii.

    Decided by the second derivative of a few examples' outputs along one random direction per layer: zero where they
    are, and almost surely not zero otherwise.
    """
    batch = risk.place(next(iter(risk.batches)).select(slice(examples)))
    generator = torch.Generator().manual_seed(seed)
    scalar = torch.zeros((), device=risk.device, dtype=risk.dtype)
    found = []
    for layer in risk.layers:
        w = risk.weights[layer.name]
        direction = torch.randn(w.shape, generator=generator, dtype=torch.float64).to(w)
        risk.spend(4 * FORWARD, len(batch))
        slope, second = directional(along(risk, layer, direction, batch, risk.outputs), scalar)
        found.append(bool(second.abs().max() <= 1e-5 * slope.abs().max()))
    return tuple(found)


def piecewise_linear(risk: Risk) -> bool:
    """Whether the outputs are piecewise linear in each layer's weights alone."""
    return all(linear_layers(risk))


@torch.no_grad()
def convex_in_outputs(risk: Risk) -> bool:
    """Whether A has no negative eigenvalue on any example, so that G_ii is positive semidefinite."""
    def least(batch: Batch) -> Tensor:
        batch = risk.place(batch)
        risk.spend(FORWARD, len(batch))
        values = torch.linalg.eigvalsh(output_hessian(risk, risk.outputs({}, batch), batch.targets))
        return values[:, 0] + 1e-5 * values.abs().max(1).values
    return bool((risk.engine.examples(least, risk.batches) >= 0).all())


@torch.no_grad()
def gauss_newton_forms(risk: Risk, layer: Layer, direction: Tensor) -> Tensor:
    """v' G_ii v for every example, [examples], from one Jacobian-vector product."""
    scalar = torch.zeros((), device=risk.device, dtype=risk.dtype)

    def forms(batch: Batch) -> Tensor:
        batch = risk.place(batch)
        risk.spend(2 * FORWARD, len(batch))
        outputs, moved = jvp(along(risk, layer, direction, batch, risk.outputs), (scalar,), (torch.ones_like(scalar),))
        a = output_hessian(risk, outputs, batch.targets)
        return torch.einsum("bi,bij,bj->b", moved, a, moved)
    return risk.engine.examples(forms, risk.batches)


@torch.no_grad()
def gauss_newton_traces(risk: Risk, batch: Batch, signs: Tensor | None = None) -> Tensor:
    """Tr G_ii of every example and layer, [batch, layers].

    Exact, from one gradient per output, when signs is None: Tr G_ii = sum_k lambda_k |d(u_k . f)/dW_i|^2 over the
    eigenpairs of A. With random signs [batch, k], one gradient of sum_k s_k sqrt(lambda_k) u_k . f, whose squared norm
    has that expectation; A must then be positive semidefinite.
    """
    batch = risk.place(batch)
    outputs = risk.outputs({}, batch)
    values, vectors = torch.linalg.eigh(output_hessian(risk, outputs, batch.targets))
    if signs is None:
        directions, weights = list(vectors.unbind(2)), list(values.unbind(1))
    else:
        if (values < -1e-4 * values.abs().max()).any():
            raise InputError(f"the loss {risk.loss.name!r} is not convex in the outputs, so random signs do not give "
                             "its Gauss-Newton trace; take route=hutchinson")
        roots = vectors * values.clamp(min=0).sqrt()[:, None, :]
        directions, weights = [torch.einsum("bok,bk->bo", roots, signs.to(roots))], [torch.ones_like(values[:, 0])]
    risk.spend(FORWARD + GRADIENT * len(directions), len(batch))

    def squared_norms(example: Batch, tensors: tuple[list[Tensor], list[Tensor]]) -> Tensor:
        one = example.select(None)
        _, pull = vjp(lambda point: risk.outputs(point, one), dict(risk.weights))
        total = torch.zeros(len(risk.layers), device=risk.device, dtype=risk.dtype)
        for direction, weight in zip(*tensors, strict=True):
            (slopes,) = pull(direction[None])
            total = total + weight * torch.stack([slopes[x.name].square().sum() for x in risk.layers])
        return total

    chunk = max(1, CHUNK // sum(w.numel() for w in risk.weights.values()))
    return vmap_examples(squared_norms, batch, (directions, weights), chunk)


def vmap_examples(function: Callable, batch: Batch, tensors: Any, chunk: int) -> Tensor:
    """`function(example, its row of tensors)` for every example, `chunk` of them at once."""
    def one(inputs, targets, tensors):
        return function(Batch(inputs, targets, index=batch.index), tensors)
    return vmap(one, chunk_size=chunk)(batch.inputs, batch.targets, tensors)
