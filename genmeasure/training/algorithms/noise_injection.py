"""Fine-tuning with one-sided weight noise."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.probes.noise import Noise


@algorithm("noise-injection", source="Zhang, Li, Ju 2024, arXiv:2306.08553 (baseline WP-SGD)")
def noise_injection(*, sigma: float = 0.01, draws: int = 1) -> Algorithm:
    """The mean gradient over W + U_j, U_j ~ N(0, sigma² I), j = 1..draws; sigma is in units of weight."""
    return Algorithm(probe=Noise(sigma, draws))
