"""Projections of one weight tensor, in place. T = W - C is the difference to the center C.

A tensor that is already within the radius, up to the rounding with which weights are stored, is left alone bit for bit;
otherwise a projected tensor would be moved again and again. Radius 0 gives C exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def project_to_ball(weight: Tensor, center: Tensor, radius: float) -> None:
    """The nearest point with ‖T‖_F <= radius: W <- C + T min(1, radius/‖T‖_F)."""
    if radius == 0:
        weight.copy_(center)
        return
    difference = weight - center
    norm = torch.linalg.vector_norm(difference)
    allowed = radius + rounding(weight) * (radius + torch.linalg.vector_norm(center))
    weight.copy_(torch.where(norm > allowed, center + difference * (radius / norm), weight))


@torch.no_grad()
def rescale_rows(weight: Tensor, center: Tensor, radius: float | Tensor, outputs: int = 0) -> None:
    """Each row T_r <- T_r min(1, radius/‖T_r‖_1), so that the maximum absolute row sum is at most the radius.

    The projection of Gouk, Hospedales, Pontil 2021, arXiv:2002.08253: it lands on the boundary, yet is not the nearest
    point (`project_rows` is). radius: one number or one for each row [rows]. outputs: the dimension that counts rows.
    """
    def shrink(difference: Tensor, radius: Tensor, sums: Tensor) -> Tensor:
        return difference * (radius / sums)
    _by_row(weight, center, radius, outputs, shrink)


@torch.no_grad()
def project_rows(weight: Tensor, center: Tensor, radius: float | Tensor, outputs: int = 0) -> None:
    """The nearest point with ‖T_r‖_1 <= radius in every row r, by soft thresholding.

    Duchi et al. 2008, "Efficient projections onto the l1-ball for learning in high dimensions", Figure 1. Parameters
    as in `rescale_rows`.
    """
    _by_row(weight, center, radius, outputs, _soft_threshold)


def _soft_threshold(difference: Tensor, radius: Tensor, sums: Tensor) -> Tensor:
    """sign(t) max(|t| - theta, 0) with theta the mean excess of the rho largest entries."""
    ordered = difference.abs().sort(dim=1, descending=True).values
    excess = (ordered.cumsum(1) - radius) / torch.arange(1, ordered.shape[1] + 1, device=ordered.device,
                                                         dtype=ordered.dtype)
    kept = (ordered > excess).sum(1, keepdim=True).clamp(min=1)
    return difference.sign() * (difference.abs() - excess.gather(1, kept - 1)).clamp(min=0)


def _by_row(weight: Tensor, center: Tensor, radius: float | Tensor, outputs: int, project) -> None:
    rows, centers = _rows(weight, outputs), _rows(center, outputs)
    difference = rows - centers
    radius = torch.as_tensor(radius, dtype=rows.dtype, device=rows.device).reshape(-1, 1)
    sums = difference.abs().sum(1, keepdim=True)
    allowed = radius + rounding(weight) * (radius + centers.abs().sum(1, keepdim=True))
    moved = torch.where(sums > allowed, centers + project(difference, radius, sums), rows)
    moved = torch.where(radius == 0, centers, moved)
    weight.copy_(moved.reshape(weight.movedim(outputs, 0).shape).movedim(0, outputs))


@torch.no_grad()
def clip_scale(gamma: Tensor, deviation: Tensor, center: Tensor, radius: float) -> None:
    """gamma [channels], so that every entry of gamma/deviation is within radius of center."""
    scale = gamma / deviation
    clipped = torch.clamp(scale, center - radius, center + radius)
    allowed = radius + rounding(gamma) * (radius + center.abs())
    gamma.copy_(torch.where((scale - center).abs() > allowed, clipped * deviation, gamma))


def frobenius(difference: Tensor, outputs: int = 0) -> Tensor:
    """‖T‖_F, a scalar."""
    return torch.linalg.vector_norm(difference)


def row_sums(difference: Tensor, outputs: int = 0) -> Tensor:
    """‖T_r‖_1 [rows]."""
    return _rows(difference, outputs).abs().sum(1)


def _rows(weight: Tensor, outputs: int) -> Tensor:
    """[rows, rest]."""
    return weight.movedim(outputs, 0).flatten(1)


def rounding(weight: Tensor) -> float:
    return 8 * torch.finfo(weight.dtype).eps
