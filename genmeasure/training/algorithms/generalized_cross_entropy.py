"""Fine-tuning with the generalized cross-entropy."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.losses.generalized_cross_entropy import GeneralizedCrossEntropy


@algorithm("generalized-cross-entropy", source="Zhang, Sabuncu 2018, arXiv:1805.07836")
def generalized_cross_entropy(*, q: float = 0.7, threshold: float = 0.0) -> Algorithm:
    """Minimises (1 - p[label]^q) / q (GCE), between cross-entropy (q = 0) and absolute error (q = 1).

    threshold: examples whose label has no larger probability are left out (the truncated loss); 0 leaves none out.
    """
    return Algorithm(loss=GeneralizedCrossEntropy(q, threshold))
