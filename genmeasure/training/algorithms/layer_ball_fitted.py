"""Fine-tuning with every layer in a ball whose radius plain fine-tuning has shown."""

from __future__ import annotations

from collections.abc import Mapping

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.constraints.layer_balls import LayerBalls


@algorithm("layer-ball-fitted", source="Li, Zhang 2021, arXiv:2111.04578 (radii that follow the distances of plain "
                                       "fine-tuning)")
def layer_ball_fitted(*, scale: float | Mapping[str, float] = 0.5, head_scale: float | None = 1.0,
                      head_about: str = "zero", batch_norm: bool = False, norm: str = "frobenius") -> Algorithm:
    """Projects layer i into ‖W_i - W_i,start‖ <= scale * ‖W_i,plain - W_i,start‖ after every step.

    W_plain comes from plain fine-tuning with the same settings, which runs first and costs as much again. scale: one
    number, or one for each layer by name. head_scale: for the head's ball about "zero" or "start" (head_about), times
    the distance of the plain head to that point; None leaves the head free. batch_norm: whether normalisation scales
    are clipped too. norm: "frobenius", or "mars" or "l1-row" for row sums.
    """
    return Algorithm(constraint=LayerBalls(scale, head_radius=head_scale, head_about=head_about, batch_norm=batch_norm,
                                           norm=norm, relative_to="plain"))
