"""Fine-tuning on noisy labels with a loss that is right on average, every layer in a ball around its start."""

from __future__ import annotations

from collections.abc import Mapping

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.constraints.layer_balls import LayerBalls
from genmeasure.training.losses.consistent import Consistent


@algorithm("consistent-layer-ball", source="Ju, Li, Zhang 2022, arXiv:2206.02659, Algorithm 1")
def consistent_layer_ball(*, radius: float | Mapping[str, float] = 1.0, growth: float = 1.0,
                          head_radius: float | None = 8.0, head_about: str = "zero", groups: str = "layers",
                          floor: float | None = None, correction: str = "backward",
                          confusion: str = "given") -> Algorithm:
    """The consistent loss under layer-wise distance constraints, which Ju, Li, Zhang propose for noisy labels.

    radius, growth, head_radius, head_about, groups: as `layer-ball`. floor, correction, confusion: as
    `consistent-loss`.
    """
    return Algorithm(loss=Consistent(floor, correction, confusion),
                     constraint=LayerBalls(radius, growth, head_radius, head_about, groups=groups))
