"""A pull towards zero."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from genmeasure.training.context import Context
from genmeasure.training.penalties.distance import SquaredDistance, check_weights, pulls
from genmeasure.training.pieces import Penalty, Recipe


@dataclass(frozen=True)
class SquaredNorm(Recipe[Penalty]):
    """weight/2 * sum ‖W‖_F² over all trainable tensors, so that its gradient is weight * W.

    weight: in nats per squared weight, at least 0. biases: whether tensors named bias are among them.
    """

    weight: float = 1e-4
    biases: bool = True

    def __post_init__(self):
        check_weights(self.weight, self.weight)

    def prepare(self, context: Context) -> SquaredDistance:
        pulled = pulls(context, dict.fromkeys(context.start, self.weight), self.weight, self.biases)
        return SquaredDistance({name: (self.weight / 2, torch.zeros_like(center.sum()))
                                for name, (_, center) in pulled.items()})
