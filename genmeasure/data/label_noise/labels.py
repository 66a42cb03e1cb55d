"""Labels of which some are wrong, and what all kinds of noise have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genmeasure.errors import InputError


@dataclass(frozen=True)
class NoisyLabels:
    """Labels of which some are wrong.

    labels: [n] int64. clean: [n] int64, the true ones. confusion: [k, k] float64, P(noisy | clean) with one row per
    clean class, exactly that of the mechanism that drew the labels. flipped: [n] bool, where the two differ.
    """

    labels: Tensor
    clean: Tensor
    confusion: Tensor
    flipped: Tensor

    @classmethod
    def of(cls, labels: Tensor, clean: Tensor, confusion: Tensor | None = None, *, classes: int) -> NoisyLabels:
        """confusion: by default the one that came out, for noise without any draws."""
        confusion = counted_confusion(labels, clean, classes) if confusion is None else confusion
        return cls(labels, clean, confusion, labels != clean)

    @property
    def realised_rate(self) -> float:
        """The fraction of labels that are wrong."""
        return self.flipped.double().mean().item()

    @property
    def realised_confusion(self) -> Tensor:
        """[k, k] float64, what came out in these labels; the identity's row for a class that is absent."""
        return counted_confusion(self.labels, self.clean, len(self.confusion))


def counted_confusion(labels: Tensor, clean: Tensor, classes: int) -> Tensor:
    """[k, k] float64 on the CPU, the fraction of each clean class that has each label; the identity's row for a class
    that is absent."""
    counts = torch.bincount(clean.cpu() * classes + labels.cpu(), minlength=classes**2).reshape(classes, classes)
    return rows_of_probabilities(counts.double())


def rows_of_probabilities(weights: Tensor) -> Tensor:
    """Weights [k, k] >= 0 with rows that add up to 1; the identity's row in place of one that is zero."""
    sums = weights.sum(1, keepdim=True)
    return torch.where(sums > 0, weights / sums, torch.eye(len(weights), dtype=weights.dtype))


def checked(y: Any, classes: int) -> tuple[Tensor, torch.device]:
    """Labels [n] as int64 on the CPU, and the device that they came from; `InputError` for anything else."""
    clean = torch.as_tensor(y)
    if clean.dim() != 1 or not len(clean) or clean.is_floating_point():
        raise InputError(f"labels of shape {list(clean.shape)} and type {clean.dtype} came; "
                         "give one integer class for each example")
    device, clean = clean.device, clean.to(device="cpu", dtype=torch.int64)
    if classes < 2 or clean.min() < 0 or clean.max() >= classes:
        raise InputError(f"labels from {clean.min()} to {clean.max()} came with {classes} classes; labels must lie "
                         "between 0 and classes - 1, with at least two classes")
    return clean, device


def number_drawn(rate: float, examples: int) -> int:
    """floor(rate * examples); `InputError` for a rate outside [0, 1]."""
    if not 0 <= rate <= 1:
        raise InputError(f"the noise rate {rate} came; give a fraction between 0 and 1")
    return math.floor(rate * examples + 1e-9)  # 0.29 * 100 is 28.999…


def drawn_rows(rate: float, examples: int, generator: torch.Generator) -> Tensor:
    """floor(rate * examples) positions, drawn without replacement."""
    drawn = number_drawn(rate, examples)
    return torch.randperm(examples, generator=generator)[:drawn]
