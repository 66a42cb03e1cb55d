"""Fine-tuning with a pull towards the start."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.penalties.distance import DistanceToStart


@algorithm("l2-sp", source="Li, Grandvalet, Davoine 2018, arXiv:1802.01483")
def l2_sp(*, weight: float = 0.01, head_weight: float = 0.01, biases: bool = True) -> Algorithm:
    """Adds weight * sum ‖W - W_start‖_F² over the extractor and head_weight * sum ‖W‖_F² over the head.

    Both weights are in nats per squared weight. biases: whether biases are pulled too.
    """
    return Algorithm(penalty=DistanceToStart(weight, head_weight, biases))
