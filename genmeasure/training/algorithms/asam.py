"""Adaptive sharpness-aware minimisation."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.probes.adaptive_uphill import AdaptiveUphill


@algorithm("asam", source="Kwon et al. 2021, arXiv:2102.11600, Algorithm 1")
def asam(*, rho: float = 0.5, eta: float = 0.0) -> Algorithm:
    """The gradient at W + rho T² g/‖T g‖_2, T = |W| + eta, g the gradient at W.

    rho has no unit; eta is in units of weight.
    """
    return Algorithm(probe=AdaptiveUphill(rho, eta))
