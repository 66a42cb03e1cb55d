"""Tr H_ii from outputs alone: differences along Gaussian noise in one layer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genmeasure.curvature.noise import DOUBT, FIRST_GROUPS, Curve, Noise, Sample, Spreads, group_draws, group_size
from genmeasure.curvature.perturbation import Perturbed
from genmeasure.curvature.piecewise import Structure, structure
from genmeasure.curvature.trace import Tolerances, Traces
from genmeasure.data.batches import Batch
from genmeasure.engine import progress
from genmeasure.estimate import MIN_DEGREES_OF_FREEDOM
from genmeasure.layers import Layer
from genmeasure.risk import FORWARD, Risk

WIDER = 3.0
"""The second sigma, in units of the first."""


@dataclass(frozen=True)
class ForwardTraces(Traces):
    """Traces with a bound of what each is biased by, and what second differences of the outputs say, both [layers].

    The covariance holds the squares of the bias, so that intervals allow for it. residual: Tr (H - G)_ii and what kinks
    add to it; part of the traces unless `structure.linear`.
    """

    bias: Tensor | None = None
    residual: Tensor | None = None
    structure: Structure | None = None


def halves(risk: Risk, model: Perturbed, noises: Sequence[Noise], batch: Batch, sigmas: Sequence[float]) -> Tensor:
    """The parts of the second difference of the loss at every sigma, [batch, 2 * sigmas], float64.

    With the outputs f of an example, f+ and f- at W +- sigma U, l its loss as a function of the outputs:
    Gauss-Newton, l(f + d) + l(f - d) - 2 l(f) with d = (f+ - f-) / 2, and residual, l(f + c) - l(f - c) with
    c = (f+ + f-) / 2 - f. To the second order of sigma they are sigma^2 U'GU and sigma^2 U'(H - G)U.
    """
    batch = risk.place(batch)

    def outputs(sigma: float, noise: Noise) -> Tensor:
        risk.spend(FORWARD, len(batch))
        with model.moved(noise.moves(sigma) if sigma else {}):
            return risk.outputs({}, batch).double()

    def losses(at: Tensor) -> Tensor:
        return risk.losses_of(at, batch)
    here = outputs(0.0, noises[0])
    plain, straight, bent = losses(here), [], []
    for noise, sigma in zip(noises, sigmas, strict=True):
        up, down = outputs(sigma, noise), outputs(-sigma, noise)
        move, bow = (up - down) / 2, (up + down) / 2 - here
        straight.append(losses(here + move) + losses(here - move) - 2 * plain)
        bent.append(losses(here + bow) - losses(here - bow))
    return torch.stack([*straight, *bent], 1)


class Differences:
    """1 / s^2 times `halves` of one layer at two sizes s of the noise, [draws, 4]."""

    def __init__(self, risk: Risk, sample: Sample, layer: Layer, sigma: float, seed: int, linear: bool):
        self.risk, self.sample, self.layers, self.seed, self.linear = risk, sample, (layer,), seed, linear
        self.spreads = Spreads("norm").of(risk)
        self.sigmas, self.model = (sigma, WIDER * sigma), Perturbed(risk, self.layers)
        self.numbers = (seed, 1 + risk.layers.index(layer))
        self.values = torch.zeros(0, 4, dtype=torch.float64)

    @property
    def found(self) -> Curve:
        """The trace at both sizes."""
        straight, bent = self.values[:, :2], self.values[:, 2:]
        return Curve(straight if self.linear else straight + bent)

    @property
    def residual(self) -> float:
        return self.values[:, 2].mean().item()

    def extend(self, draws: int) -> None:
        """Up to that many draws in all."""
        more = range(len(self.values), draws)
        (layer,) = self.layers
        spread = self.spreads[layer.name]
        scale = torch.tensor([1 / (s * spread) ** 2 if spread else 0.0 for s in self.sigmas] * 2, dtype=torch.float64)
        drawn = group_draws(self.risk, self.sample, self.sigmas, more, layers=self.layers, spreads=self.spreads,
                            numbers=self.numbers, model=self.model, measured=halves)
        self.values = torch.cat([self.values, scale * drawn])


@torch.inference_mode()
def forward_traces(risk: Risk, sample: Sample, *, sigma: float, rtol: float, layer_rtol: float, atol: float,
                   max_passes: int, seed: int) -> ForwardTraces:
    """Tr H_ii of every layer by differences of the outputs, without a derivative of any order.

    sigma: standard deviation of the noise, relative to the root mean square of the layer's weights. Where the network
    is piecewise linear in each layer's weight alone, the trace is that of the Gauss-Newton part: what kinks change in
    first differences vanishes with sigma, what they add to second differences does not. Elsewhere both parts are added.

    The bias is bounded by what `WIDER` times the noise adds and, in networks with kinks that are not piecewise linear,
    by the residual as well, where kinks and curvature cannot be told apart. Its square is added to the variance of the
    draws, which end as `block_traces` ends, by the variance of the draws alone, or when every layer has been drawn
    `max_passes` times the number of examples.
    """
    shape = structure(risk)
    layers = [Differences(risk, sample, layer, sigma, seed, shape.linear) for layer in risk.layers]
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
    residual = torch.tensor([layer.residual for layer in layers], dtype=torch.float64)
    bias = (torch.stack([c.value[1] for c in curves]) - value).abs()
    if shape.kinks and not shape.linear:
        bias += residual.abs()
    variance = torch.stack([c.covariance[0, 0] for c in curves])
    # biases of layers may have one sign, so that those of sums add up
    covariance = torch.diag(variance) + bias[:, None] * bias
    return ForwardTraces(value, covariance, sum(c.draws for c in curves), "forward", None, bias, residual, shape)


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

