"""A normalised loss and one that pushes wrong classes down."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genmeasure.errors import unknown
from genmeasure.losses import cross_entropy
from genmeasure.training.losses.symmetric_cross_entropy import LOG_ZERO, check_weights, reverse_cross_entropy
from genmeasure.training.pieces import TrainLoss

PASSIVE = ("reverse-cross-entropy", "mean-absolute-error")


@dataclass(frozen=True)
class ActivePassive(TrainLoss):
    """alpha NCE + beta RCE, or alpha NCE + beta MAE (Ma et al. 2020, arXiv:2006.13554: APL).

    NCE = ln p[label] / sum_j ln p[j], between 0 and 1. passive: "reverse-cross-entropy", -log_zero (1 - p[label]), or
    "mean-absolute-error", ‖p - e_label‖_1 = 2 (1 - p[label]), which public code takes without the 2.
    """

    alpha: float = 1.0
    beta: float = 1.0
    passive: str = "reverse-cross-entropy"
    log_zero: float = LOG_ZERO

    def __post_init__(self):
        check_weights(self.alpha, self.beta, self.log_zero)
        if self.passive not in PASSIVE:
            raise unknown("passive loss", self.passive, PASSIVE)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        passive = reverse_cross_entropy(outputs, targets, self.log_zero) if self.passive == PASSIVE[0] \
            else mean_absolute_error(outputs, targets)
        return self.alpha * normalized_cross_entropy(outputs, targets) + self.beta * passive


def normalized_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """ln p[label] / sum_j ln p[j], [batch]."""
    return cross_entropy(outputs, targets) / -torch.log_softmax(outputs, 1).sum(1)


def mean_absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """‖p - e_label‖_1 = 2 (1 - p[label]), [batch]."""
    return -2 * torch.expm1(-cross_entropy(outputs, targets))
