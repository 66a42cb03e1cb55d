"""The plain cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from genmeasure.losses import cross_entropy
from genmeasure.training.pieces import TrainLoss


@dataclass(frozen=True)
class CrossEntropy(TrainLoss):
    """-ln p[target], in nats."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets)
