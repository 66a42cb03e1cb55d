"""Norms of a weight as a matrix [out, rest]; convolution kernels are reshaped."""

from __future__ import annotations

import torch
from torch import Tensor

from genmeasure.layers import matrix


def lengths(x: Tensor) -> Tensor:
    """Euclidean norm of every row of x [rows, ...], [rows] in float64; the squares neither overflow nor vanish."""
    rows = x.detach().double().flatten(1)
    largest = rows.abs().amax(1, keepdim=True)
    scale = torch.where(largest > 0, largest, 1.0)
    return (rows / scale).norm(dim=1) * scale[:, 0]


def frobenius(weight: Tensor) -> float:
    return weight.double().norm().item()


def spectral(weight: Tensor) -> float:
    """Largest singular value of the reshaped matrix: at most that of a convolution's linear map (measures.md 4)."""
    return torch.linalg.matrix_norm(matrix(weight).double(), 2).item()


def mars(weight: Tensor) -> float:
    """Maximum absolute row sum, the operator norm of l-infinity (Gouk et al. 2021, arXiv:2002.08253)."""
    return matrix(weight).double().abs().sum(1).max().item()


def two_one(weight: Tensor) -> float:
    """Sum over output units of the Euclidean norm of the row: Bartlett et al. 2017, (2,1) norm of the transpose."""
    return matrix(weight).double().norm(dim=1).sum().item()


NORMS = {"frobenius": frobenius, "spectral": spectral, "mars": mars, "two-one": two_one}
