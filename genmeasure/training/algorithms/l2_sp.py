"""Fine-tuning with a pull towards the start."""

from __future__ import annotations

from collections.abc import Mapping

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.penalties.distance import DistanceToStart


@algorithm("l2-sp", source="Li, Grandvalet, Davoine 2018, arXiv:1802.01483")
def l2_sp(*, weight: float | Mapping[str, float] = 0.01, head_weight: float = 0.01, biases: bool = True,
          growth: float = 1.0, groups: str = "layers") -> Algorithm:
    """Adds weight * sum ‖W - W_start‖_F² over the extractor and head_weight * sum ‖W‖_F² over the head.

    Both weights are in nats per squared weight; weight may be given for each layer by name. biases: whether biases are
    pulled too. growth, groups: factors on the weight by depth or by a family's groups, as in `layer-ball`.
    """
    return Algorithm(penalty=DistanceToStart(weight, head_weight, biases, growth, groups))
