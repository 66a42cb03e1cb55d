"""Fine-tuning with a pull towards the start by the maximum absolute row sum."""

from __future__ import annotations

from collections.abc import Mapping

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.penalties.row_sums import RowSumsToStart


@algorithm("mars-sp", source="Gouk, Hospedales, Pontil 2021, arXiv:2002.08253 (MARS-SP)")
def mars_sp(*, weight: float | Mapping[str, float] = 0.001, head_weight: float = 0.001, biases: bool = False,
            growth: float = 1.0, groups: str = "layers") -> Algorithm:
    """Adds weight * sum max_r ‖W_r - W_r,start‖_1 over the extractor and head_weight * sum max_r ‖W_r‖_1 over the head.

    Not squared; r runs over the rows of a weight. Both weights are in nats per weight, searched between e^-10 and e^-1
    in the paper; weight may be given for each layer by name. biases: whether biases are pulled too, by their largest
    entry. growth, groups: factors on the weight by depth or by a family's groups, as in `layer-ball`.
    """
    return Algorithm(penalty=RowSumsToStart(weight, head_weight, biases, growth, groups))
