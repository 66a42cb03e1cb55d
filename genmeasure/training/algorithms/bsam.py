"""Bayesian sharpness-aware minimisation."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.probes.posterior_uphill import PosteriorUphill


@algorithm("bsam", source="Möllenhoff, Khan 2023, arXiv:2210.01620, Algorithm 1")
def bsam(*, rho: float = 0.01, beta1: float = 0.9, beta2: float = 0.999, delta: float = 1e-4, damping: float = 0.1,
         scale: float = 1.0, examples: int | None = None) -> Algorithm:
    """SAM with a learned Gaussian posterior; goes with optimizer "sgd", momentum 0 and weight decay 0 only.

    rho: of the step rho g/s. beta1, beta2: of the averages of gradient and scale s. delta: weight decay, damping: of s.
    scale: s at the start. examples: of the posterior's width, by default the number of training examples.
    """
    return Algorithm(probe=PosteriorUphill(rho, beta1, beta2, delta, damping, scale, examples))
