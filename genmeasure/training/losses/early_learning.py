"""Cross-entropy that does not forget what was learned early."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from genmeasure.data.batches import Batch
from genmeasure.errors import InputError
from genmeasure.losses import cross_entropy
from genmeasure.training.context import Context
from genmeasure.training.losses.ensembled_targets import EnsembledTargets, precise
from genmeasure.training.pieces import Recipe, TrainLoss

MARGIN = 1e-4
"""Probabilities are kept this far from 0 and 1, so that the logarithm stays finite (public code)."""


@dataclass(frozen=True)
class EarlyLearning(Recipe[TrainLoss]):
    """CE + strength * ln(1 - <p, t>), t <- momentum t + (1 - momentum) p from t = 0, once per step and example.

    Early-learning regularization (Liu et al. 2020, arXiv:2007.00151: ELR). The term is negative: p is drawn
    towards what was predicted for the example before. t is the model's own and takes no gradient.
    """

    strength: float = 3.0
    momentum: float = 0.7

    def __post_init__(self):
        if not self.strength >= 0:
            raise InputError(f"strength={self.strength} came; it must be at least 0")
        if not 0 <= self.momentum <= 1:
            raise InputError(f"momentum={self.momentum} came; it must lie between 0 and 1")

    def prepare(self, context: Context) -> EarlyLearningRegularized:
        """Raises `InputError` outside of a run, where the number of examples is not known."""
        if context.examples is None:
            raise InputError("early-learning regularization came outside of a run; give the training examples to "
                             "Context.of(…, examples=…)")
        sample = next(t for t in context.start.values() if t.is_floating_point())
        targets = torch.zeros(len(context.examples), context.classes, dtype=precise(sample.dtype), device=sample.device)
        return EarlyLearningRegularized(targets, self.strength, self.momentum)


class EarlyLearningRegularized(TrainLoss):
    """`EarlyLearning` with targets [n, k] that it changes; keeps `memory.targets` between steps."""

    divisible = False

    def __init__(self, targets: Tensor, strength: float = 3.0, momentum: float = 0.7):
        self.memory, self.strength = EnsembledTargets(targets, momentum), strength

    def draw(self, batch: Batch, generator: Generator | None = None, model: nn.Module | None = None) -> Batch:
        """A batch whose targets are label and row, [batch, 2]."""
        return self.memory.drawn(batch)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        labels, rows = targets.unbind(1)
        outputs = outputs.to(precise(outputs.dtype))  # where 1 - MARGIN is not 1
        probabilities = outputs.softmax(1).clamp(MARGIN, 1 - MARGIN)
        ensembled = self.memory.updated(rows, probabilities / probabilities.sum(1, keepdim=True)).to(outputs)
        term = torch.log1p(-(probabilities * ensembled).sum(1))
        return cross_entropy(outputs, labels) + self.strength * term

    def state(self) -> dict[str, Tensor]:
        return self.memory.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.memory.load(state)
