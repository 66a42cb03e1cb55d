"""Deep low-rank adaptation (Deep LoRA)."""

from __future__ import annotations

import functools
import itertools
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
class DeepProduct(Recipe[Adapter]):
    """W + (W_L … W_2 W_1 - its value at the start) with the L factors trained, W frozen (Yaras et al. 2024,
    arXiv:2406.04112); the head is trained in full.

    Every factor starts orthogonal (semi-orthogonal where it is not square) times epsilon. The product then has
    singular values epsilon^L, not 0 as LoRA's; it is taken off so that the outputs at the start stay the same, which
    the paper does not do. A convolution's kernel counts as the matrix [out, in * height * width].
    depth: L, at least 2. width: of the inner factors; None takes the larger side of the weight, as in the paper, and
    the factors then hold at least depth times as many numbers as the weight. layers: pattern or patterns of the layers
    that get factors. Not included: the paper's compression to the singular vectors of the first gradient.
    """

    depth: int = 3
    width: int | None = 8
    epsilon: float = 1e-3
    layers: str | Sequence[str] = "*"

    def __post_init__(self):
        if self.depth < 2:
            raise InputError(f"depth={self.depth} came; a product needs at least 2 factors")
        if self.width is not None and self.width < 1:
            raise InputError(f"width={self.width} came; it must be at least 1, or None for the larger side of a weight")
        if not 0 < self.epsilon < math.inf:
            raise InputError(f"epsilon={self.epsilon} came; factors that start at 0 have no gradient, so it must be "
                             "above 0")

    def prepare(self, context: Context) -> DeepProductAdapter:
        return DeepProductAdapter(chosen_weights(context, self.layers), context, self)


class DeepProductAdapter(FactorAdapter):
    """`DeepProduct` for known weights."""

    def __init__(self, names: Sequence[str], context: Context, parameters: DeepProduct):
        super().__init__(names, context)
        self.parameters = parameters

    def change(self, weight: Tensor, generator: Generator) -> DeepProductChange:
        rows, columns = weight.flatten(1).shape
        depth, width = self.parameters.depth, self.parameters.width or max(rows, columns)
        sides = [columns, *[width] * (depth - 1), rows]
        factors = [nn.init.orthogonal_(torch.empty(above, below), self.parameters.epsilon, generator=generator)
                   for below, above in itertools.pairwise(sides)]
        return DeepProductChange(factors)


class DeepProductChange(Change):
    """W + W_L … W_1 - start. factors: W_1 [width, in], W_2 [width, width], …, W_L [out, width]. start: their product
    before training [out, in]."""

    def __init__(self, factors: Sequence[Tensor]):
        super().__init__()
        self.factors = nn.ParameterList(factors)
        self.register_buffer("start", self.product().detach().clone())

    def product(self) -> Tensor:
        """[out, in]."""
        return functools.reduce(torch.matmul, reversed(list(self.factors)))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.product() - self.start).reshape(weight.shape)
