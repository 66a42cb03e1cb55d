"""Sharpness-aware minimisation without normalisation."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.probes.unnormalized_uphill import UnnormalizedUphill


@algorithm("usam", source="Andriushchenko, Flammarion 2022, arXiv:2206.06232")
def usam(*, rho: float = 0.05) -> Algorithm:
    """The gradient at W + rho g, g the gradient at W; rho is in weight² per nat."""
    return Algorithm(probe=UnnormalizedUphill(rho))
