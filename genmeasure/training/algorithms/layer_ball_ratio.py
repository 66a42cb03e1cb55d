"""Fine-tuning with every layer in a ball whose radius is a share of its start's norm."""

from __future__ import annotations

from collections.abc import Mapping

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.constraints.layer_balls import LayerBalls


@algorithm("layer-ball-ratio", source="Ju, Li, Zhang 2022, arXiv:2206.02659 (public code, constraints by ratio)")
def layer_ball_ratio(*, ratio: float | Mapping[str, float] = 0.1, head_ratio: float | None = None,
                     batch_norm: bool = False, norm: str = "frobenius") -> Algorithm:
    """Projects every layer into ‖W - W_start‖ <= ratio * ‖W_start‖ after every step.

    ratio: one number, or one for each layer by name. head_ratio: for the head, about its start as well; None leaves it
    free. batch_norm: whether normalisation scales are clipped, by ratio times the largest of the layer. norm:
    "frobenius"; "mars" and "l1-row" take row sums, each row with a radius of its own.
    """
    return Algorithm(constraint=LayerBalls(ratio, head_radius=head_ratio, head_about="start", batch_norm=batch_norm,
                                           norm=norm, relative_to="start"))
