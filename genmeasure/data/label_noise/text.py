"""Symmetric noise with the same number of wrong labels in every part of the data."""

from __future__ import annotations

from typing import Any

import torch

from genmeasure.data.label_noise.labels import NoisyLabels, checked, drawn_rows
from genmeasure.data.label_noise.symmetric import redrawn, symmetric_confusion
from genmeasure.errors import InputError
from genmeasure.registry import label_noise


@label_noise("text", source="public code of Ju, Li, Zhang 2022, arXiv:2206.02659")
def text(y: Any, classes: int, *, rate: float, seed: int = 1024, part: int = 1000) -> NoisyLabels:
    """Draw floor(rate * m) labels of every `part` examples in a row: two classes are flipped, more are drawn uniformly.

    y: [n] class indices; m is `part`, less in the last part. With two classes a drawn label becomes the other one (real
    flip rate `rate`); with more it is drawn among all k, the true one included (`rate * (k - 1) / k`). Raises
    `InputError` for a rate outside [0, 1].
    """
    clean, device = checked(y, classes)
    if part < 1:
        raise InputError(f"part={part} came; each part must hold at least 1 example")
    generator = torch.Generator().manual_seed(seed)
    rows = torch.cat([start + drawn_rows(rate, min(part, len(clean) - start), generator)
                      for start in range(0, len(clean), part)])
    labels = redrawn(clean, rows, classes, generator, include_true=classes > 2)
    confusion = symmetric_confusion(len(rows) / len(clean), classes, include_true=classes > 2)
    return NoisyLabels.of(labels.to(device), clean.to(device), confusion, classes=classes)
