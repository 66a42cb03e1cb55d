"""Cross-entropy in both directions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genmeasure.errors import InputError
from genmeasure.losses import cross_entropy
from genmeasure.training.pieces import TrainLoss

LOG_ZERO = -4.0
"""A, which stands for ln 0 in the reverse cross-entropy."""


@dataclass(frozen=True)
class SymmetricCrossEntropy(TrainLoss):
    """alpha CE + beta RCE (Wang et al. 2019, arXiv:1908.06112: SCE, or SL).

    RCE = -sum_j p[j] ln e_label[j] with ln 0 = A, so that it is -A (1 - p[label]). log_zero: A, below 0; -2 makes RCE
    the absolute error ‖p - e_label‖_1. Public code takes ln 1e-4 = -9.21.
    """

    alpha: float = 0.1
    beta: float = 1.0
    log_zero: float = LOG_ZERO

    def __post_init__(self):
        check_weights(self.alpha, self.beta, self.log_zero)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        reverse = reverse_cross_entropy(outputs, targets, self.log_zero)
        return self.alpha * cross_entropy(outputs, targets) + self.beta * reverse


def reverse_cross_entropy(outputs: Tensor, targets: Tensor, log_zero: float = LOG_ZERO) -> Tensor:
    """-sum_j p[j] ln e_label[j] with ln 0 = log_zero, [batch]."""
    return log_zero * torch.expm1(-cross_entropy(outputs, targets))


def check_weights(alpha: float, beta: float, log_zero: float) -> None:
    """Raise `InputError` for parameters out of range."""
    if not (alpha >= 0 and beta >= 0):
        raise InputError(f"alpha={alpha} and beta={beta} came; both must be at least 0")
    if not log_zero < 0:
        raise InputError(f"log_zero={log_zero} came; what stands for ln 0 must be below 0")
