"""Cross-entropy on smoothed labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from genmeasure.errors import InputError
from genmeasure.training.pieces import TrainLoss


@dataclass(frozen=True)
class SmoothedCrossEntropy(TrainLoss):
    """(1 - a) l[target] + (a/k) sum_j l[j], l = -ln p (Szegedy et al. 2016, arXiv:1512.00567, section 7).

    smoothing: a, between 0 and 1.
    """

    smoothing: float = 0.2

    def __post_init__(self):
        if not 0 <= self.smoothing <= 1:
            raise InputError(f"smoothing={self.smoothing} came; it must lie between 0 and 1")

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=self.smoothing)
