"""Fine-tuning on labels that follow the model's own predictions slowly."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.losses.self_adaptive import SelfAdaptive


@algorithm("self-adaptive-training", source="Huang et al. 2020, arXiv:2002.10319, Algorithm 1")
def self_adaptive_training(*, start: int = 9, momentum: float = 0.9) -> Algorithm:
    """Trains on a running average of label and predictions (SAT) after `start` epochs of cross-entropy."""
    return Algorithm(loss=SelfAdaptive(start, momentum))
