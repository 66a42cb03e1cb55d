"""A loss between cross-entropy and mean absolute error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genmeasure.errors import InputError
from genmeasure.losses import cross_entropy
from genmeasure.training.pieces import TrainLoss


@dataclass(frozen=True)
class GeneralizedCrossEntropy(TrainLoss):
    """(1 - p[label]^q) / q (Zhang, Sabuncu 2018, arXiv:1805.07836: GCE, or L_q).

    q: from 0, where it is the cross-entropy -ln p, to 1, where it is 1 - p, half the absolute error ‖p - e_label‖_1.
    threshold: the loss is constant where p[label] is no larger (the truncated L_q), 0 truncates nothing.
    """

    q: float = 0.7
    threshold: float = 0.0

    def __post_init__(self):
        if not 0 <= self.q <= 1:
            raise InputError(f"q={self.q} came; it must lie between 0 and 1")
        if not 0 <= self.threshold < 1:
            raise InputError(f"threshold={self.threshold} came; a probability from 0 to below 1 is needed")

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        nats = cross_entropy(outputs, targets)
        if self.threshold > 0:
            nats = nats.clamp(max=-torch.tensor(self.threshold, dtype=nats.dtype, device=nats.device).log())
        return nats if self.q == 0 else -torch.expm1(-self.q * nats) / self.q
