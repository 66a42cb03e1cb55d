"""Traces of the blocks H_ii from losses alone: second differences along Gaussian noise in one layer at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genmeasure.curvature.noise import DOUBT, FIRST_GROUPS, Curve, Sample, Spreads, group_draws, group_size
from genmeasure.curvature.perturbation import Perturbed
from genmeasure.curvature.trace import Tolerances, Traces
from genmeasure.engine import progress
from genmeasure.estimate import MIN_DEGREES_OF_FREEDOM
from genmeasure.layers import Layer
from genmeasure.risk import Risk

WIDER = 3.0
"""The second sigma, in units of the first."""


@dataclass(frozen=True)
class ForwardTraces(Traces):
    """Traces with what the wider noise adds to each, [layers]: it bounds what higher orders add at the first sigma.

    The covariance holds the squares of both, so that intervals allow for the bias.
    """

    bias: Tensor | None = None


class Differences:
    """2 / s^2 ([L(W + s u) + L(W - s u)] / 2 - L(W)) of one layer at two sizes s of the noise, [draws, 2]."""

    def __init__(self, risk: Risk, sample: Sample, layer: Layer, sigma: float, seed: int):
        self.risk, self.sample, self.layers, self.seed = risk, sample, (layer,), seed
        self.spreads = Spreads("norm").of(risk)
        self.sigmas, self.model = (sigma, WIDER * sigma), Perturbed(risk, self.layers)
        self.numbers = (seed, 1 + risk.layers.index(layer))
        self.values = torch.zeros(0, 2, dtype=torch.float64)

    @property
    def found(self) -> Curve:
        return Curve(self.values)

    def extend(self, draws: int) -> None:
        """Up to that many draws in all."""
        more = range(len(self.values), draws)
        (layer,) = self.layers
        spread = self.spreads[layer.name]
        scale = torch.tensor([2 / (s * spread) ** 2 if spread else 0.0 for s in self.sigmas], dtype=torch.float64)
        drawn = group_draws(self.risk, self.sample, self.sigmas, more, layers=self.layers, spreads=self.spreads,
                            numbers=self.numbers, model=self.model)
        self.values = torch.cat([self.values, scale * drawn])


@torch.inference_mode()
def forward_traces(risk: Risk, sample: Sample, *, sigma: float, rtol: float, layer_rtol: float, atol: float,
                   max_passes: int, seed: int) -> ForwardTraces:
    """Tr H_ii of every layer by antithetic differences of the loss, without a derivative of any order.

    sigma: standard deviation of the noise, relative to the root mean square of the layer's weights; `WIDER` times as
    much tells the bias. Its square is added to the variance of the draws, which end as `block_traces` ends, by the
    variance of the draws alone, or when every layer has been drawn `max_passes` times the number of examples.
    """
    layers = [Differences(risk, sample, layer, sigma, seed) for layer in risk.layers]
    tolerances = Tolerances(len(layers), rtol, layer_rtol, atol)
    limit = max(2, max_passes * risk.batches.size // min(group_size(risk), risk.batches.size))
    wanted = [min(limit, FIRST_GROUPS)] * len(layers)
    for _ in progress(range(limit), "trace"):
        for layer, count in zip(layers, wanted, strict=True):
            if count > len(layer.values):
                layer.extend(count)
        wanted = _wanted(layers, tolerances, limit)
        if wanted == [len(layer.values) for layer in layers]:
            break
    curves = [layer.found for layer in layers]
    value = torch.stack([c.value[0] for c in curves])
    bias = torch.stack([c.value[1] for c in curves]) - value
    variance = torch.stack([c.covariance[0, 0] for c in curves])
    # biases of layers may have one sign, so that those of sums add up
    covariance = torch.diag(variance) + bias.abs()[:, None] * bias.abs()
    return ForwardTraces(value, covariance, sum(c.draws for c in curves), "forward", None, bias)


def _wanted(layers: list[Differences], tolerances: Tolerances, limit: int) -> list[int]:
    """Draws that every layer should have: for itself, and for the total by Neyman's allocation."""
    curves = [layer.found for layer in layers]
    have = torch.tensor([c.draws for c in curves], dtype=torch.float64)
    variance = torch.stack([c.covariance[0, 0] for c in curves])
    excess = tolerances.excess(torch.stack([c.value[0] for c in curves]), torch.diag(variance))
    wanted = have * excess[:-1]
    if excess[-1] > 1:
        spread = (variance * have).sqrt()
        wanted = torch.maximum(wanted, spread * spread.sum() * excess[-1] / variance.sum())
    few = torch.tensor([c.degrees_of_freedom < MIN_DEGREES_OF_FREEDOM for c in curves])
    few &= torch.maximum(wanted / have, excess[-1]) * DOUBT > 1
    factor = torch.where(few, 1.5, (1.1 * wanted / have).nan_to_num(2.0)).clamp(max=2.0)
    more = torch.where(few | (wanted > have), (have * factor).ceil(), have)
    return [min(limit, int(max(a, b))) for a, b in zip(more.tolist(), have.tolist(), strict=True)]

