"""Sharpness-aware minimisation from randomly moved weights."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.probes.random_uphill import RandomUphill


@algorithm("random-sam", source="Liu et al. 2022 (NeurIPS), in the form of the public code of arXiv:2306.08553")
def random_sam(*, rho: float = 0.05, sigma: float = 0.01) -> Algorithm:
    """The gradient at W + rho h/‖h‖_2, h the gradient at W + U, U ~ N(0, sigma² I).

    rho and sigma are in units of weight.
    """
    return Algorithm(probe=RandomUphill(rho, sigma))
