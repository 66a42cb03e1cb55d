"""A quadratic loss as a module, for closed forms."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Quadratic(nn.Module):
    """f(W) = W' A W / 2 + b' W in float64, with a parameter that it does not use. seen: weights of every pass.

    shape: of the parameter W, of which the formula takes the entries in a row.
    """

    def __init__(self, size: int = 5, shape: tuple[int, ...] | None = None):
        super().__init__()
        g = torch.Generator().manual_seed(3)
        root = torch.randn(size, size, generator=g, dtype=torch.float64)
        self.matrix, self.slope = root + root.T, torch.randn(size, generator=g, dtype=torch.float64)
        self.weight = nn.Parameter(torch.randn(size, generator=g, dtype=torch.float64).reshape(shape or (size,)))
        self.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.seen: list[Tensor] = []

    def forward(self) -> Tensor:
        self.seen.append(self.weight.detach().clone())
        w = self.weight.flatten()
        return 0.5 * w @ self.matrix @ w + self.slope @ w

    def gradient(self, at: Tensor) -> Tensor:
        return self.matrix @ at + self.slope

    def value(self, at: Tensor) -> Tensor:
        return 0.5 * at @ self.matrix @ at + self.slope @ at
