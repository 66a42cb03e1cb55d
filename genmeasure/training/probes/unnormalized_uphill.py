"""The gradient one step uphill, as long as the gradient makes it (USAM)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor, nn

from genmeasure.errors import InputError
from genmeasure.training.pieces import Objective, Probe
from genmeasure.training.probes.uphill import gradient_uphill


@dataclass(frozen=True)
class UnnormalizedUphill(Probe):
    """The gradient at w + rho g, where g is the gradient at w.

    Un-normalised sharpness-aware minimisation (Andriushchenko, Flammarion 2022, arXiv:2206.06232). rho: in weight²
    per nat, at least 0. The returned loss is that at w. Running statistics are updated in the first pass only.
    """

    rho: float = 0.05
    passes = 2

    def __post_init__(self):
        if not self.rho >= 0:
            raise InputError(f"rho={self.rho} came; the step uphill must be at least 0")

    def gradient(self, model: nn.Module, objective: Objective, generator: Generator | None) -> Tensor:
        return gradient_uphill(model, objective, lambda weights, gradients: [self.rho * g for g in gradients])
