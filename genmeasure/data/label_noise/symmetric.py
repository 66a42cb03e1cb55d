"""Labels drawn anew uniformly, whatever the class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genmeasure.data.label_noise.labels import NoisyLabels, checked, drawn_rows
from genmeasure.registry import label_noise


@label_noise("symmetric", source="Ju, Li, Zhang 2022, arXiv:2206.02659; Natarajan et al. 2013")
def symmetric(y: Any, classes: int, *, rate: float, seed: int = 0, include_true: bool = False) -> NoisyLabels:
    """Draw floor(rate * n) examples without replacement and give each a label drawn uniformly.

    y: [n] class indices. include_true: draw the new label among all k classes, so that a fraction 1/k stays right
    (Ju, Li and Zhang 2022; real flip rate `rate * (k - 1) / k`); else among the k - 1 wrong ones (real flip rate
    `rate`). `confusion` is that of the mechanism: each example is drawn with probability floor(rate * n) / n,
    whatever its class. Raises `InputError` for a rate outside [0, 1] and for labels outside 0..k-1.
    """
    clean, device = checked(y, classes)
    generator = torch.Generator().manual_seed(seed)
    rows = drawn_rows(rate, len(clean), generator)
    labels = redrawn(clean, rows, classes, generator, include_true)
    confusion = symmetric_confusion(len(rows) / len(clean), classes, include_true=include_true)
    return NoisyLabels.of(labels.to(device), clean.to(device), confusion, classes=classes)


def redrawn(labels: Tensor, rows: Tensor, classes: int, generator: torch.Generator, include_true: bool) -> Tensor:
    """A copy of labels [n] with those at `rows` drawn uniformly, among all classes or among the others."""
    labels = labels.clone()
    if include_true:
        labels[rows] = torch.randint(classes, (len(rows),), generator=generator)
    else:
        labels[rows] = (labels[rows] + torch.randint(1, classes, (len(rows),), generator=generator)) % classes
    return labels


def symmetric_confusion(rate: float, classes: int, *, include_true: bool = False) -> Tensor:
    """F [k, k] float64 of `symmetric` noise in which each label is drawn anew with probability `rate`."""
    other = rate / (classes if include_true else classes - 1)
    confusion = torch.full((classes, classes), other, dtype=torch.float64)
    return confusion.fill_diagonal_(1 - other * (classes - 1))
