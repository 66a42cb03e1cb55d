"""Fine-tuning with the maximum absolute row sum of every layer's change bounded."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.constraints.layer_balls import LayerBalls


@algorithm("mars-projection", source="Gouk, Hospedales, Pontil 2021, arXiv:2002.08253 (MARS-PGM)")
def mars_projection(*, radius: float = 6.6, head_radius: float | None = 7.6, head_about: str = "zero",
                    batch_norm: bool = True, growth: float = 1.0, groups: str = "layers") -> Algorithm:
    """Rescales each row of W - W_start whose absolute sum exceeds the radius, in every layer, after every step.

    This lands on the boundary and is not the nearest point, which `l1-row-projection` takes. radius, head_radius: in
    units of weight; the defaults are the paper's for the Flowers data, its search lies between e^0.5 and e^3.5.
    head_radius: of the head's rows about "zero" or "start" (head_about); None leaves it free. batch_norm: whether every
    entry of gamma/sqrt(running_var + eps) is kept within radius of its start. growth, groups: as in `layer-ball`.
    """
    return Algorithm(constraint=LayerBalls(radius, growth, head_radius, head_about, batch_norm, groups, "mars"))
