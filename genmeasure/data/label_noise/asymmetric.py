"""Labels drawn anew from one skewed distribution over the classes."""

from __future__ import annotations

from typing import Any

import torch

from genmeasure.data.label_noise.class_conditional import sampled
from genmeasure.data.label_noise.labels import NoisyLabels, checked, drawn_rows
from genmeasure.registry import label_noise


@label_noise("asymmetric", source="public code of Ju, Li, Zhang 2022, arXiv:2206.02659")
def asymmetric(y: Any, classes: int, *, rate: float, seed: int = 0) -> NoisyLabels:
    """Draw floor(rate * n) examples and give each a label from one random class distribution, softmax(U[0,1]^k).

    y: [n] class indices. The distribution q is the same whatever the true class, which may come out again, so that
    class y keeps its label with probability 1 - s (1 - q_y), s = floor(rate * n) / n. Raises `InputError` for a rate
    outside [0, 1].
    """
    clean, device = checked(y, classes)
    generator = torch.Generator().manual_seed(seed)
    distribution = torch.rand(classes, generator=generator, dtype=torch.float64).softmax(0)
    rows = drawn_rows(rate, len(clean), generator)
    labels = clean.clone()
    labels[rows] = sampled(distribution.expand(len(rows), classes), generator)
    share = len(rows) / len(clean)
    confusion = (1 - share) * torch.eye(classes, dtype=torch.float64) + share * distribution
    return NoisyLabels.of(labels.to(device), clean.to(device), confusion, classes=classes)
