"""Fine-tuning with the maximum absolute row sum of every layer's change bounded, by the nearest point."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.constraints.layer_balls import LayerBalls


@algorithm("l1-row-projection", source="Duchi et al. 2008, doi:10.1145/1390156.1390191, for the constraint "
                                       "of Gouk, Hospedales, Pontil 2021, arXiv:2002.08253")
def l1_row_projection(*, radius: float = 6.6, head_radius: float | None = 7.6, head_about: str = "zero",
                      batch_norm: bool = True) -> Algorithm:
    """Takes each row of W - W_start to the nearest point whose absolute sum is at most the radius, after every step.

    The constraint of `mars-projection`, enforced by soft thresholding. Parameters as there.
    """
    return Algorithm(constraint=LayerBalls(radius, 1.0, head_radius, head_about, batch_norm, norm="l1-row"))
