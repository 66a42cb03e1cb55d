"""Fine-tuning with an active and a passive loss."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.losses.active_passive import ActivePassive
from genmeasure.training.losses.symmetric_cross_entropy import LOG_ZERO


@algorithm("active-passive-loss", source="Ma et al. 2020, arXiv:2006.13554")
def active_passive_loss(*, alpha: float = 1.0, beta: float = 1.0, passive: str = "reverse-cross-entropy",
                        log_zero: float = LOG_ZERO) -> Algorithm:
    """Minimises alpha times normalised cross-entropy plus beta times a passive loss (APL).

    passive: "reverse-cross-entropy" (NCE + RCE), in which ln 0 is `log_zero`, or "mean-absolute-error" (NCE + MAE).
    """
    return Algorithm(loss=ActivePassive(alpha, beta, passive, log_zero))
