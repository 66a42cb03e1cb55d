"""Noise stability optimisation."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.probes.noise import Noise
from genmeasure.training.probes.noise_over_time import over_time


@algorithm("nso", source="Zhang, Li, Ju 2024, arXiv:2306.08553, Algorithm 1")
def nso(*, sigma: float = 0.01, draws: int = 1, lam: float = 0.0, distribution: str = "normal",
        schedule: str = "constant", momentum: float = 0.0, statistics: str = "moved") -> Algorithm:
    """The mean gradient over W + U_j and W - U_j, U_j ~ N(0, sigma² I), j = 1..draws; sigma is in units of weight.

    Minimises the loss plus sigma²/2 times its Hessian trace, up to terms of order sigma⁴.
    lam: weight of the gradient at W itself, below 1. distribution: "normal", "laplace", "uniform", "binomial" or
    "rademacher". schedule: of sigma over the epochs, "constant", "linear" or "log-linear". momentum: of the noise.
    statistics: running ones are the mean of those at W + U_1 and W - U_1 ("moved"), or those of W ("clean", for which
    networks that have them pay one more forward pass).
    """
    return Algorithm(probe=over_time(Noise(sigma, draws, True, lam, distribution, statistics), schedule, momentum))
