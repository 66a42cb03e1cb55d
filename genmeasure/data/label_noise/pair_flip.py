"""Each class mistaken for one other class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from genmeasure.data.label_noise.labels import NoisyLabels, checked, drawn_rows
from genmeasure.errors import InputError
from genmeasure.registry import label_noise


@label_noise("pair-flip", source="Han et al. 2018, arXiv:1804.06872; pairs: Patrini et al. 2017, arXiv:1609.03683")
def pair_flip(y: Any, classes: int, *, rate: float, seed: int = 0,
              pairs: Mapping[int, int] | None = None) -> NoisyLabels:
    """Draw floor(rate * n) examples without replacement and give each the label of its class's partner.

    y: [n] class indices. pairs: partner of each class, classes without one keep their labels; by default class i has
    the partner i + 1, and the last class the first. Raises `InputError` for a rate outside [0, 1] and for pairs outside
    0..k-1.
    """
    clean, device = checked(y, classes)
    partner = torch.arange(classes).roll(-1) if pairs is None else torch.arange(classes)
    for one, other in (pairs or {}).items():
        if not (0 <= one < classes and 0 <= other < classes):
            raise InputError(f"the pair {one} -> {other} came with {classes} classes; both must lie between 0 and "
                             "classes - 1")
        partner[one] = other
    rows = drawn_rows(rate, len(clean), torch.Generator().manual_seed(seed))
    labels = clean.clone()
    labels[rows] = partner[clean[rows]]
    share = len(rows) / len(clean)
    confusion = (1 - share) * torch.eye(classes, dtype=torch.float64)
    confusion[torch.arange(classes), partner] += share
    return NoisyLabels.of(labels.to(device), clean.to(device), confusion, classes=classes)
