"""The largest loss near the weights, by steps uphill."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from genmeasure.data.batches import Batch
from genmeasure.errors import second_derivative
from genmeasure.risk import GRADIENT, Risk, Weights

LOSS = None
"""Key of the loss beside the layers' gradients."""
STEP = 0.25
"""Length of a step of the projected ascent, in radii."""


def loss_and_gradient(risk: Risk, weights: Weights) -> tuple[float, dict[str, Tensor]]:
    """Mean loss and its gradient by layer at `weights`."""
    def one(batch: Batch) -> dict:
        batch = risk.place(batch)
        risk.spend(GRADIENT, len(batch))
        point = {k: w.detach().clone().requires_grad_() for k, w in weights.items()}
        with torch.enable_grad(), risk.saved():
            loss = risk.losses_of(risk.outputs(point, batch).double(), batch).sum()
            slopes = torch.autograd.grad(loss, list(point.values()), materialize_grads=True)
        return {LOSS: loss.detach(), **dict(zip(point, slopes, strict=True))}
    with second_derivative():
        total = risk.engine.sum(one, risk.batches)
    loss = total.pop(LOSS).item() / risk.batches.size
    return loss, {k: g / risk.batches.size for k, g in total.items()}


def worst_case(risk: Risk, spreads: Mapping[str, float | Tensor], radius: float, steps: int) -> tuple[float, float]:
    """Increase of the loss at the end of one step of length `radius` uphill, and the largest of a projected ascent.

    The ball is one of v, where a layer's weight is moved by its spread times v: with spreads of one it is
    ‖W' - W‖_2 <= radius (SAM, Foret et al. 2021, arXiv:2010.01412), with the weights' sizes ‖(W' - W) / |W|‖_2 (ASAM,
    Kwon et al. 2021, arXiv:2102.11600). The ascent goes on from that step, each of its `steps` a quarter of the radius
    along the normalised gradient and back into the ball. What it finds is at most the true maximum.
    """
    def at(v: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
        loss, slopes = loss_and_gradient(risk, {k: w + spreads[k] * v[k] for k, w in risk.weights.items()})
        return loss, {k: spreads[k] * g for k, g in slopes.items()}

    zero = {k: torch.zeros_like(w) for k, w in risk.weights.items()}
    plain, slopes = at(zero)
    v = _scaled(slopes, radius)
    best = first = -torch.inf
    for number in range(steps + 1):
        loss, slopes = at(v)
        first = loss if number == 0 else first
        best = max(best, loss)
        uphill = _scaled(slopes, STEP * radius)
        v = {k: v[k] + uphill[k] for k in v}
        v = _scaled(v, min(radius, _norm(v)))
    return first - plain, best - plain


def _norm(v: Mapping[str, Tensor]) -> float:
    return sum(t.double().square().sum() for t in v.values()).sqrt().item()


def _scaled(v: Mapping[str, Tensor], length: float) -> dict[str, Tensor]:
    """v at this length; zero stays zero."""
    norm = _norm(v)
    return {k: t * (length / norm if norm else 0.0) for k, t in v.items()}
