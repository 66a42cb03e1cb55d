"""Fine-tuning on noisy labels with a loss that is right on average."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.losses.consistent import Consistent


@algorithm("consistent-loss", source="Ju, Li, Zhang 2022, arXiv:2206.02659; Patrini et al. 2017, arXiv:1609.03683, "
                                     "Theorem 1")
def consistent_loss(*, floor: float | None = None) -> Algorithm:
    """Cross-entropy corrected by the inverse of the label noise's confusion matrix, which the run must be given.

    floor: in nats; stops examples whose corrected loss has fallen to it. None leaves the loss unbounded below.
    """
    return Algorithm(loss=Consistent(floor))
