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
    beyond = norm > radius + rounding(weight) * (radius + torch.linalg.vector_norm(center))
    if _known_to_be_inside(beyond):
        return
    moved = difference.mul_(radius / norm).add_(center)
    weight.copy_(moved if beyond.device.type == "cpu" else torch.where(beyond, moved, weight))


@torch.no_grad()
def rescale_rows(weight: Tensor, center: Tensor, radius: float | Tensor, outputs: int = 0) -> None:
    """Each row T_r <- T_r min(1, radius/‖T_r‖_1), so that the maximum absolute row sum is at most the radius.

    The projection of Gouk, Hospedales, Pontil 2021, arXiv:2002.08253: it lands on the boundary, yet is not the nearest
    point (`project_rows` is). radius: one number or one for each row [rows]. outputs: the dimension that counts rows.
    """
    _by_row(weight, center, radius, outputs, lambda difference, radius, sums: difference.mul_(radius / sums))


@torch.no_grad()
def project_rows(weight: Tensor, center: Tensor, radius: float | Tensor, outputs: int = 0) -> None:
    """The nearest point with ‖T_r‖_1 <= radius in every row r, by soft thresholding.

    Duchi et al. 2008, "Efficient projections onto the l1-ball for learning in high dimensions", section 4; the
    threshold is found as by Michelot 1986, "A finite algorithm for finding the projection of a point onto the canonical
    simplex of R^n". Costs several times as much as `rescale_rows`. Parameters as there.
    """
    _by_row(weight, center, radius, outputs, _soft_threshold)


def _soft_threshold(difference: Tensor, radius: Tensor, sums: Tensor) -> Tensor:
    """sign(t) max(|t| - theta, 0); theta is the mean excess of the entries larger than theta, found by leaving out
    those that are not until none is left to leave out."""
    size = difference.abs()
    count = torch.full_like(sums, size.shape[1])
    theta = (sums - radius) / count
    while True:
        kept = size > theta
        fewer = kept.sum(1, keepdim=True).to(count)
        if not (fewer < count).any():
            near = difference.sign() * (size - theta).clamp_(min=0)
            # the rounding of theta is as large as the excess that was taken off
            return near.mul_(radius / torch.linalg.vector_norm(near, 1, 1, keepdim=True))
        theta, count = ((size * kept).sum(1, keepdim=True) - radius) / fewer, torch.minimum(fewer, count)


def _by_row(weight: Tensor, center: Tensor, radius: float | Tensor, outputs: int, project) -> None:
    """project: (differences [n, rest], radius [n, 1], sums [n, 1]) -> differences within the radius."""
    if not isinstance(radius, Tensor) and radius == 0:
        weight.copy_(center)
        return
    own_radii = isinstance(radius, Tensor)
    rows, centers = _rows(weight, outputs), _rows(center, outputs)
    difference = rows - centers
    radius = torch.as_tensor(radius, dtype=rows.dtype, device=rows.device).reshape(-1, 1)
    sums = torch.linalg.vector_norm(difference, 1, 1, keepdim=True)
    beyond = sums > radius + rounding(weight) * (radius + torch.linalg.vector_norm(centers, 1, 1, keepdim=True))
    if own_radii:
        beyond |= radius == 0
    if _known_to_be_inside(beyond):
        return
    moved = torch.where(beyond, project(difference, radius, sums).add_(centers), rows)
    if own_radii:
        moved = torch.where(radius == 0, centers, moved)
    weight.copy_(moved.reshape(weight.movedim(outputs, 0).shape).movedim(0, outputs))


def _known_to_be_inside(beyond: Tensor) -> bool:
    """Whether nothing is left to do, where asking costs nothing: an accelerator would have to be waited for."""
    return beyond.device.type == "cpu" and not bool(beyond.any())


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
