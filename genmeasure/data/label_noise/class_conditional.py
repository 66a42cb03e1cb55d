"""Labels drawn from a given confusion matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genmeasure.data.label_noise.arrays import array
from genmeasure.data.label_noise.confusion import checked_confusion
from genmeasure.data.label_noise.labels import NoisyLabels, checked
from genmeasure.errors import InputError
from genmeasure.registry import label_noise


@label_noise("class-conditional", source="Natarajan et al. 2013; Patrini et al. 2017, arXiv:1609.03683, section 3")
def class_conditional(y: Any, classes: int, *, confusion: Any, seed: int = 0) -> NoisyLabels:
    """Draw every label from the row of its class in a given confusion matrix.

    y: [n] class indices. confusion: [k, k], P(noisy | clean) with one row per clean class, or a file of it (.npy,
    .csv). Labels are drawn independently of each other, so the rates that come out scatter about the matrix. Raises
    `InputError` for a matrix of another size or without rows of probabilities.
    """
    clean, device = checked(y, classes)
    confusion = checked_confusion(array(confusion))
    if len(confusion) != classes:
        raise InputError(f"a confusion matrix of shape {list(confusion.shape)} came; with {classes} classes it must be "
                         f"{[classes, classes]}")
    labels = sampled(confusion[clean], torch.Generator().manual_seed(seed))
    return NoisyLabels.of(labels.to(device), clean.to(device), confusion, classes=classes)


def sampled(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """One class for each row of probabilities [n, k] float64."""
    steps = probabilities.cumsum(1)
    uniform = torch.rand(len(steps), 1, generator=generator, dtype=torch.float64)
    # rounding may leave the last step below 1; divided by itself it is above every draw
    return (steps / steps[:, -1:] <= uniform).sum(1)
