"""Fine-tuning from losses alone."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.probes.value_differences import ValueDifferences


@algorithm("zeroth-order", source="Zhang et al. 2025 (zeroth-order optimisation finds flat minima)")
def zeroth_order(*, sigma: float = 0.002, draws: int = 1) -> Algorithm:
    """The mean of (f(W + sigma u_j) - f(W - sigma u_j))/(2 sigma) u_j, u_j ~ N(0, I), j = 1..draws; no backward pass.

    sigma is in units of weight (lambda in the paper). Many more steps are needed than with gradients.
    """
    return Algorithm(probe=ValueDifferences(sigma, draws))
