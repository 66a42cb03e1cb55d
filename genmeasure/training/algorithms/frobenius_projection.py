"""Fine-tuning with all layers in Frobenius balls of one radius."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.constraints.layer_balls import LayerBalls


@algorithm("frobenius-projection", source="Gouk, Hospedales, Pontil 2021, arXiv:2002.08253 (Frobenius-PGM)")
def frobenius_projection(*, radius: float = 5.0, head_radius: float | None = 15.0, head_about: str = "zero",
                         batch_norm: bool = True) -> Algorithm:
    """Projects every layer, the first one included, into ‖W - W_start‖_F <= radius after every step.

    radius, head_radius: in units of weight; searched between e^0.5 and e^3.5 in the paper. head_radius: of the head's
    ball about "zero" or "start" (head_about); None leaves it free. batch_norm: whether every entry of
    gamma/sqrt(running_var + eps) is kept within radius of its start.
    """
    return Algorithm(constraint=LayerBalls(radius, 1.0, head_radius, head_about, batch_norm))
