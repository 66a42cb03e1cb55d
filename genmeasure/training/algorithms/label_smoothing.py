"""Fine-tuning on smoothed labels."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.losses.label_smoothing import SmoothedCrossEntropy


@algorithm("label-smoothing", source="Szegedy et al. 2016, arXiv:1512.00567, section 7")
def label_smoothing(*, smoothing: float = 0.2) -> Algorithm:
    """Cross-entropy on labels of which a share `smoothing` (0 to 1) is spread evenly over all classes."""
    return Algorithm(loss=SmoothedCrossEntropy(smoothing))
