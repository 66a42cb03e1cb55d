"""Fine-tuning with the symmetric cross-entropy."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.losses.symmetric_cross_entropy import LOG_ZERO, SymmetricCrossEntropy


@algorithm("symmetric-cross-entropy", source="Wang et al. 2019, arXiv:1908.06112")
def symmetric_cross_entropy(*, alpha: float = 0.1, beta: float = 1.0, log_zero: float = LOG_ZERO) -> Algorithm:
    """Minimises alpha times cross-entropy plus beta times reverse cross-entropy (SCE), in which ln 0 is `log_zero`."""
    return Algorithm(loss=SymmetricCrossEntropy(alpha, beta, log_zero))
