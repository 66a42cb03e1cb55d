"""Low-rank adaptation (LoRA)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from genmeasure.errors import InputError
from genmeasure.training.adapters.factors import Change, FactorAdapter, chosen_weights
from genmeasure.training.context import Context
from genmeasure.training.pieces import Adapter, Recipe


@dataclass(frozen=True)
class LowRank(Recipe[Adapter]):
    """W + (alpha/rank) B A with B [out, rank] and A [rank, in] trained, W frozen (Hu et al. 2022, arXiv:2106.09685,
    section 4.1); the head is trained in full.

    A convolution's kernel counts as the matrix [out, in * height * width]. A starts from N(0, 1/in), B from 0.
    rank: at least 1. alpha: scale. layers: pattern or patterns of the layers that get factors.
    """

    rank: int = 8
    alpha: float = 8.0
    layers: str | Sequence[str] = "*"

    def __post_init__(self):
        if self.rank < 1:
            raise InputError(f"rank={self.rank} came; it must be at least 1")
        if not 0 < self.alpha < math.inf:
            raise InputError(f"alpha={self.alpha} came; the scale of the factors must be above 0")

    def prepare(self, context: Context) -> LowRankAdapter:
        return LowRankAdapter(chosen_weights(context, self.layers), context, self.rank, self.alpha)


class LowRankAdapter(FactorAdapter):
    """`LowRank` for known weights."""

    def __init__(self, names: Sequence[str], context: Context, rank: int, alpha: float):
        super().__init__(names, context)
        self.rank, self.alpha = rank, alpha

    def change(self, weight: Tensor, generator: Generator) -> LowRankChange:
        rows, columns = weight.flatten(1).shape
        first = torch.randn(self.rank, columns, generator=generator) / math.sqrt(columns)
        return LowRankChange(first, torch.zeros(rows, self.rank), self.alpha / self.rank)


class LowRankChange(Change):
    """W + scale B A. A: [rank, in]. B: [out, rank]."""

    def __init__(self, a: Tensor, b: Tensor, scale: float):
        super().__init__()
        self.a, self.b, self.scale = nn.Parameter(a), nn.Parameter(b), scale

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.scale * self.b @ self.a).reshape(weight.shape)
