"""Plain fine-tuning."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm


@algorithm("plain", source="Ju, Li, Zhang 2022, arXiv:2206.02659 (baseline)")
def plain() -> Algorithm:
    """Cross-entropy, the plain gradient, nothing added and nothing enforced."""
    return Algorithm()
