"""The loss under Gaussian weight noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genmeasure.curvature.draws import batch_generator
from genmeasure.data.batches import Batch
from genmeasure.engine import progress
from genmeasure.estimate import StratifiedMean, until_precise
from genmeasure.risk import Risk


def perturbed(risk: Risk, noise: dict[str, Tensor], sigma: float) -> dict[str, Tensor]:
    """W + sigma u, by layer."""
    return {k: risk.weights[k] + sigma * u for k, u in noise.items()}


def antithetic_difference(risk: Risk, batch: Batch, noise: dict[str, Tensor], sigmas: Sequence[float]) -> Tensor:
    """[L(W + sigma u) + L(W - sigma u)] / 2 - L(W) for the sum of a batch's losses, one entry per sigma.

    The pair cancels the first-order term exactly.
    """
    plain = risk.batch_loss(batch)
    up = torch.stack([risk.batch_loss(batch, perturbed(risk, noise, s)) for s in sigmas])
    down = torch.stack([risk.batch_loss(batch, perturbed(risk, noise, -s)) for s in sigmas])
    return (up + down) / 2 - plain


def one_sided_difference(risk: Risk, batch: Batch, noise: dict[str, Tensor], sigmas: Sequence[float]) -> Tensor:
    """L(W + sigma u) - L(W) for the sum of a batch's losses, one entry per sigma: the papers' way."""
    plain = risk.batch_loss(batch)
    return torch.stack([risk.batch_loss(batch, perturbed(risk, noise, s)) for s in sigmas]) - plain


def noise_curve(risk: Risk, sigmas: Sequence[float], *, one_sided: bool, rtol: float, atol: float, max_passes: int,
                seed: int) -> StratifiedMean:
    """I(sigma) = E L(W + U) - L(W), U ~ N(0, sigma^2) on all selected weights, for every sigma; a mean over [sigmas].

    One u per batch and pass serves all sigmas, which makes the curve smooth; its entries are therefore correlated.
    """
    difference = one_sided_difference if one_sided else antithetic_difference

    def draw(number: int) -> Tensor:
        def one(batch: Batch) -> Tensor:
            generator = batch_generator("noise", seed, number, batch)
            noise = {k: torch.randn(w.shape, generator=generator).to(w) for k, w in risk.weights.items()}
            return difference(risk, batch, noise, sigmas)
        return risk.engine.batch_sums(one, risk.batches)
    return until_precise(draw, risk.batches.size, rtol=rtol, atol=atol,
                         numbers=progress(range(max(2, max_passes)), "noise", max_passes))
