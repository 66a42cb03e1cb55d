"""The confusion matrix of label noise and its inverse."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from genmeasure.errors import InputError

LARGEST_CONDITION = 1e3
"""Beyond this condition number a corrected loss multiplies its own noise until nothing else is left."""


def checked_confusion(confusion: Any) -> Tensor:
    """F [k, k] float64, F[y, y~] = P(noisy label y~ | clean label y); `InputError` for a matrix that is not of this
    kind."""
    confusion = torch.as_tensor(confusion, dtype=torch.float64)
    if confusion.dim() != 2 or confusion.shape[0] != confusion.shape[1]:
        raise InputError(f"a confusion matrix of shape {list(confusion.shape)} came; it must be square, "
                         "with one row and one column for each class")
    sums = confusion.sum(1)
    if not bool((confusion >= 0).all()) or not torch.allclose(sums, torch.ones_like(sums), rtol=0, atol=1e-6):
        raise InputError(f"a confusion matrix with entries from {confusion.min():.4g} and row sums from "
                         f"{sums.min():.4g} to {sums.max():.4g} came; "
                         "each row must hold probabilities that add up to 1")
    return confusion


def condition_number(confusion: Tensor) -> float:
    """Largest over smallest singular value, in the spectral norm; infinite for a singular matrix."""
    singular = torch.linalg.svdvals(confusion)
    return (singular[0] / singular[-1]).item() if singular[-1] > 0 else math.inf


def inverse_confusion(confusion: Any) -> Tensor:
    """F^-1 [k, k] float64, which makes a loss on noisy labels unbiased (Natarajan et al. 2013).

    confusion: F [k, k], F[y, y~] = P(noisy label y~ | clean label y). Raises `InputError` for a matrix that is not
    of this kind, or so close to singular (condition number above `LARGEST_CONDITION`) that the noisy labels say
    next to nothing about the clean ones.
    """
    confusion = checked_confusion(confusion)
    condition = condition_number(confusion)
    if condition > LARGEST_CONDITION:
        raise InputError(f"the confusion matrix has condition number {condition:.3g}, more than "
                         f"{LARGEST_CONDITION:.3g}, so its inverse would be noise; use labels with less noise, "
                         "or a rate other than (classes - 1) / classes")
    return torch.linalg.inv(confusion)
