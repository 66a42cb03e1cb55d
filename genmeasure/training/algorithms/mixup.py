"""Fine-tuning on mixed examples."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.losses.mixup import MixUp


@algorithm("mixup", source="Zhang et al. 2018, arXiv:1710.09412")
def mixup(*, alpha: float = 0.2) -> Algorithm:
    """Pairs of examples and labels mixed in the proportion lambda ~ Beta(alpha, alpha), alpha above 0.

    Inputs must be floating-point.
    """
    return Algorithm(loss=MixUp(alpha))
