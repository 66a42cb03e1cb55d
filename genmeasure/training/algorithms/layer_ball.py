"""Fine-tuning with every layer in a ball around its start."""

from __future__ import annotations

from collections.abc import Mapping

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.constraints.layer_balls import LayerBalls


@algorithm("layer-ball", source="Li, Zhang 2021, arXiv:2111.04578; Ju, Li, Zhang 2022, arXiv:2206.02659, Algorithm 1")
def layer_ball(*, radius: float | Mapping[str, float] = 1.0, growth: float = 1.0, head_radius: float | None = 8.0,
               head_about: str = "zero", batch_norm: bool = False, groups: str = "layers") -> Algorithm:
    """Projects layer i into ‖W_i - W_i,start‖_F <= radius * growth^(i-1) after every step.

    radius: in units of weight, or one for each layer by name. head_radius: of the head's ball about "zero" or "start"
    (head_about); None leaves the head free. batch_norm: whether normalisation scales are clipped too. groups: "layers",
    or the published schedule of a family in place of the powers i-1: "resnet" gives its stages 1 to 4 the factors 1, 1,
    growth, growth²; "vit" gives the whole encoder one radius; "bert" attention 1 and the encoder's other layers growth.
    """
    return Algorithm(constraint=LayerBalls(radius, growth, head_radius, head_about, batch_norm, groups))
