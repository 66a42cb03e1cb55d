"""Fine-tuning, or training a start, on the worst inputs nearby."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.losses.adversarial import AdversarialCrossEntropy


@algorithm("adversarial-training", source="Madry et al. 2018, arXiv:1706.06083, section 2.1")
def adversarial_training(*, radius: float = 8 / 255, steps: int = 10, step_size: float | None = None,
                         norm: str = "inf", random_start: bool = True, lower: float | None = None,
                         upper: float | None = None) -> Algorithm:
    """Cross-entropy at the inputs within `radius` that projected gradient ascent (PGD) finds to be worst.

    radius, step_size: in units of the inputs, by the norm "inf" or "2"; by default step_size is 2.5 radius / steps.
    lower, upper: the range that inputs must stay in. Inputs must be floating-point.
    """
    return Algorithm(loss=AdversarialCrossEntropy(radius, steps, step_size, norm, random_start, lower, upper))
