"""Per-example losses, with the range that a bound may use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from genmeasure.errors import unknown


@dataclass(frozen=True)
class Loss:
    """A loss per example.

    function: outputs [batch, classes], targets [batch] -> losses [batch].
    upper: the least upper bound of the loss, or None when it is unbounded; the lower bound is 0.
    classification: targets are class indices.
    """

    name: str
    function: Callable[[Tensor, Tensor], Tensor]
    upper: float | None = None
    classification: bool = True

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.function(outputs, targets)


SMALLEST_PROBABILITY = 1e-4
"""p_min of the clamped cross-entropy (Perez-Ortiz et al. 2021, arXiv:2007.12911)."""


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def clamped_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """-ln max(p, p_min) / ln(1/p_min), in [0, 1] (Perez-Ortiz et al. 2021, arXiv:2007.12911)."""
    floor = torch.as_tensor(SMALLEST_PROBABILITY, dtype=outputs.dtype, device=outputs.device).log()
    return torch.minimum(cross_entropy(outputs, targets), -floor) / -floor


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared distance, summed over the outputs of an example."""
    return 0.5 * (outputs - targets.reshape(outputs.shape).to(outputs)).flatten(1).square().sum(1)


def zero_one(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(-1) != targets).to(outputs.dtype)


LOSSES = {loss.name: loss for loss in (
    Loss("cross-entropy", cross_entropy),
    Loss("clamped-cross-entropy", clamped_cross_entropy, upper=1.0),
    Loss("squared", squared, classification=False),
)}


def get_loss(loss: str | Loss) -> Loss:
    """A loss by its registered name; a `Loss` is passed through."""
    if isinstance(loss, Loss):
        return loss
    if loss not in LOSSES:
        raise unknown("loss", loss, LOSSES)
    return LOSSES[loss]
