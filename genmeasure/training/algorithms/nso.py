"""Noise stability optimisation."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.probes.noise import Noise


@algorithm("nso", source="Zhang, Li, Ju 2024, arXiv:2306.08553, Algorithm 1")
def nso(*, sigma: float = 0.01, draws: int = 1) -> Algorithm:
    """The mean gradient over W + U_j and W - U_j, U_j ~ N(0, sigma² I), j = 1..draws; sigma is in units of weight.

    Minimises the loss plus sigma²/2 times its Hessian trace, up to terms of order sigma⁴.
    """
    return Algorithm(probe=Noise(sigma, draws, two_point=True))
