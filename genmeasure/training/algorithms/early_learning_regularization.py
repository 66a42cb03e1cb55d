"""Fine-tuning that does not forget what was learned early."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.losses.early_learning import EarlyLearning


@algorithm("early-learning-regularization", source="Liu et al. 2020, arXiv:2007.00151")
def early_learning_regularization(*, strength: float = 3.0, momentum: float = 0.7) -> Algorithm:
    """Adds strength * ln(1 - <p, t>) to the cross-entropy (ELR), t a running average of the example's predictions."""
    return Algorithm(loss=EarlyLearning(strength, momentum))
