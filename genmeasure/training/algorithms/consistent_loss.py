"""Fine-tuning on noisy labels with a loss that is right on average."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.losses.consistent import Consistent


@algorithm("consistent-loss", source="Ju, Li, Zhang 2022, arXiv:2206.02659; Patrini et al. 2017, arXiv:1609.03683, "
                                     "Theorems 1 and 2; Yao et al. 2020, arXiv:2006.07805")
def consistent_loss(*, floor: float | None = None, correction: str = "backward",
                    confusion: str = "given") -> Algorithm:
    """Cross-entropy corrected by the inverse of the label noise's confusion matrix.

    floor: in nats; stops examples whose corrected loss has fallen to it. None leaves the loss unbounded below.
    correction: "backward", "non-negative" or "forward"; the last two are bounded below. confusion: "given", which the
    run must be given, or "dual-t", estimated from a plain run.
    """
    return Algorithm(loss=Consistent(floor, correction, confusion))
