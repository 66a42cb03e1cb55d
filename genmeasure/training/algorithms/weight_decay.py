"""Fine-tuning with a pull towards zero."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.penalties.weight_decay import SquaredNorm


@algorithm("weight-decay", source="Krogh, Hertz 1991, A simple weight decay can improve generalization (L2 form)")
def weight_decay(*, weight: float = 1e-4, biases: bool = True) -> Algorithm:
    """Adds weight/2 * sum ‖W‖_F², the L2 form of weight decay: its gradient weight * W goes through the optimizer.

    The decoupled form is the weight_decay of the optimizer "adamw", not this one. weight: in nats per squared weight.
    biases: whether biases decay too.
    """
    return Algorithm(penalty=SquaredNorm(weight, biases))
