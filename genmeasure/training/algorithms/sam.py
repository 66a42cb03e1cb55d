"""Sharpness-aware minimisation."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.probes.uphill import Uphill


@algorithm("sam", source="Foret et al. 2021, arXiv:2010.01412, Algorithm 1")
def sam(*, rho: float = 0.05) -> Algorithm:
    """The gradient at W + rho g/‖g‖_2, g the gradient at W; rho is in units of weight."""
    return Algorithm(probe=Uphill(rho))
