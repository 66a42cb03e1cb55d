"""Sharpness-aware minimisation with a penalty on the change of the gradient."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.probes.gradient_difference import GradientDifference


@algorithm("hero", source="Yang et al. 2022, arXiv:2111.11986")
def hero(*, rho: float = 0.5, lam: float = 1.0, adaptive: bool = True) -> Algorithm:
    """The gradient of L(W + e) + lam times the mean squares, tensor by tensor, of grad L(W + e) - grad L(W).

    e: the step uphill of ASAM with length rho, or with adaptive=False that of SAM.
    """
    return Algorithm(probe=GradientDifference(rho, lam, adaptive))
