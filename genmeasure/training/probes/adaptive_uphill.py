"""The gradient one step uphill, in proportion to the weights (ASAM)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor, nn

from genmeasure.errors import InputError
from genmeasure.training.pieces import Objective, Probe
from genmeasure.training.probes.uphill import check_rho, gradient_uphill, over_norm


@dataclass(frozen=True)
class AdaptiveUphill(Probe):
    """The gradient at w + e, e = rho T² g/‖T g‖_2, T = |w| + eta entry by entry, where g is the gradient at w.

    Adaptive sharpness-aware minimisation (Kwon et al. 2021, arXiv:2102.11600, Algorithm 1 with p = 2 and elementwise
    normalisation). rho: without unit, at least 0; ten times that of SAM is usual. eta: in units of weight, at least 0;
    with 0 a weight that is zero is not moved. It holds for all trainable weights, biases included. The returned loss
    is that at w. Running statistics are updated in the first pass only.
    """

    rho: float = 0.5
    eta: float = 0.0
    passes = 2

    def __post_init__(self):
        check_rho(self.rho)
        if not self.eta >= 0:
            raise InputError(f"eta={self.eta} came; what is added to the size of a weight must be at least 0")

    def gradient(self, model: nn.Module, objective: Objective, generator: Generator | None) -> Tensor:
        return gradient_uphill(model, objective, lambda weights, gradients: adaptive_ascent(
            weights, gradients, self.rho, self.eta))


def adaptive_ascent(weights, gradients, rho: float, eta: float = 0.0) -> list[Tensor]:
    """rho T² g/‖T g‖_2 with one norm over all tensors, T = |w| + eta; zero where T g is zero."""
    sizes = [w.abs() + eta for w in weights]
    scaled = [t * g for t, g in zip(sizes, gradients, strict=True)]
    factor = over_norm(rho, scaled)
    return [t * s * factor for t, s in zip(sizes, scaled, strict=True)]
