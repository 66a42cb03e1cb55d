"""Make labels wrong in a known way, and undo that way in expectation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genmeasure.errors import InputError

LARGEST_CONDITION = 1e3
"""Beyond this condition number a corrected loss multiplies its own noise until nothing else is left."""


@dataclass(frozen=True)
class NoisyLabels:
    """Labels of which some are wrong.

    labels: [n] int64. clean: [n] int64, the true ones. confusion: [k, k] float64, P(noisy | clean) with one row per
    clean class. flipped: [n] bool, where the two differ.
    """

    labels: Tensor
    clean: Tensor
    confusion: Tensor
    flipped: Tensor

    @property
    def realised_rate(self) -> float:
        """The fraction of labels that are wrong."""
        return self.flipped.double().mean().item()


def symmetric(y: Any, rate: float, classes: int, *, seed: int, include_true: bool = False) -> NoisyLabels:
    """Draw floor(rate * n) examples without replacement and give each a label drawn uniformly.

    y: [n] class indices. include_true: draw the new label among all k classes, so that a fraction 1/k stays right
    (Ju, Li and Zhang 2022; real flip rate `rate * (k - 1) / k`); else among the k - 1 wrong ones (real flip rate
    `rate`). `confusion` is that of the mechanism: each example is drawn with probability floor(rate * n) / n,
    whatever its class. Raises `InputError` for a rate outside [0, 1] and for labels outside 0..k-1.
    """
    clean = torch.as_tensor(y)
    if clean.dim() != 1 or not len(clean) or clean.is_floating_point():
        raise InputError(f"labels of shape {list(clean.shape)} and type {clean.dtype} came; "
                         "give one integer class for each example")
    if not 0 <= rate <= 1:
        raise InputError(f"the noise rate {rate} came; give a fraction between 0 and 1")
    device, clean = clean.device, clean.to(device="cpu", dtype=torch.int64)
    if classes < 2 or clean.min() < 0 or clean.max() >= classes:
        raise InputError(f"labels from {clean.min()} to {clean.max()} came with {classes} classes; labels must lie "
                         "between 0 and classes - 1, with at least two classes")
    drawn = math.floor(rate * len(clean) + 1e-9)  # 0.29 * 100 is 28.999…
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(clean), generator=generator)[:drawn]
    labels = clean.clone()
    if include_true:
        labels[rows] = torch.randint(classes, (drawn,), generator=generator)
    else:
        labels[rows] = (clean[rows] + torch.randint(1, classes, (drawn,), generator=generator)) % classes
    confusion = symmetric_confusion(drawn / len(clean), classes, include_true=include_true)
    return NoisyLabels(labels.to(device), clean.to(device), confusion, (labels != clean).to(device))


def symmetric_confusion(rate: float, classes: int, *, include_true: bool = False) -> Tensor:
    """F [k, k] float64 of `symmetric` noise in which each label is drawn anew with probability `rate`."""
    other = rate / (classes if include_true else classes - 1)
    confusion = torch.full((classes, classes), other, dtype=torch.float64)
    return confusion.fill_diagonal_(1 - other * (classes - 1))


def inverse_confusion(confusion: Any) -> Tensor:
    """F^-1 [k, k] float64, which makes a loss on noisy labels unbiased (Natarajan et al. 2013).

    confusion: F [k, k], F[y, y~] = P(noisy label y~ | clean label y). Raises `InputError` for a matrix that is not
    of this kind, or so close to singular (condition number above `LARGEST_CONDITION`) that the noisy labels say
    next to nothing about the clean ones.
    """
    confusion = torch.as_tensor(confusion, dtype=torch.float64)
    if confusion.dim() != 2 or confusion.shape[0] != confusion.shape[1]:
        raise InputError(f"a confusion matrix of shape {list(confusion.shape)} came; it must be square, "
                         "with one row and one column for each class")
    sums = confusion.sum(1)
    if not bool((confusion >= 0).all()) or not torch.allclose(sums, torch.ones_like(sums), rtol=0, atol=1e-6):
        raise InputError(f"a confusion matrix with entries from {confusion.min():.4g} and row sums from "
                         f"{sums.min():.4g} to {sums.max():.4g} came; "
                         "each row must hold probabilities that add up to 1")
    singular = torch.linalg.svdvals(confusion)
    condition = (singular[0] / singular[-1]).item() if singular[-1] > 0 else math.inf
    if condition > LARGEST_CONDITION:
        raise InputError(f"the confusion matrix has condition number {condition:.3g}, more than "
                         f"{LARGEST_CONDITION:.3g}, so its inverse would be noise; use labels with less noise, "
                         "or a rate other than (classes - 1) / classes")
    return torch.linalg.inv(confusion)
