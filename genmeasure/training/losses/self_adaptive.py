"""Labels that follow the model's own predictions slowly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from genmeasure.data.batches import Batch
from genmeasure.errors import InputError
from genmeasure.losses import cross_entropy
from genmeasure.training.context import Context
from genmeasure.training.losses.ensembled_targets import EnsembledTargets, precise
from genmeasure.training.pieces import Recipe, TrainLoss


@dataclass(frozen=True)
class SelfAdaptive(Recipe[TrainLoss]):
    """Self-adaptive training (Huang et al. 2020, arXiv:2002.10319, Algorithm 1: SAT).

    Up to epoch `start` the cross-entropy on the given label; then t <- momentum t + (1 - momentum) p from the one-hot
    label, once per step and example, and sum_i w_i CE(t_i, p_i) / sum_i w_i over the batch, w_i = max_j t_ij. The
    returned losses have this mean, so they depend on the batch. start: the paper takes 60 of 200 epochs.
    """

    start: int = 9
    momentum: float = 0.9

    def __post_init__(self):
        if self.start < 0:
            raise InputError(f"start={self.start} came; it must be at least 0")
        if not 0 <= self.momentum <= 1:
            raise InputError(f"momentum={self.momentum} came; it must lie between 0 and 1")

    def prepare(self, context: Context) -> SelfAdaptiveCrossEntropy:
        """Raises `InputError` outside of a run, where the training labels are not known."""
        if context.examples is None:
            raise InputError("self-adaptive training came outside of a run; give the training examples to "
                             "Context.of(…, examples=…)")
        sample = next(t for t in context.start.values() if t.is_floating_point())
        targets = F.one_hot(context.examples.targets, context.classes).to(sample.device, precise(sample.dtype))
        return SelfAdaptiveCrossEntropy(targets, self.start, self.momentum)


class SelfAdaptiveCrossEntropy(TrainLoss):
    """`SelfAdaptive` with soft labels [n, k] that it changes; keeps `memory.targets` between steps."""

    divisible = False

    def __init__(self, targets: Tensor, start: int = 9, momentum: float = 0.9):
        self.memory, self.start, self.epoch = EnsembledTargets(targets, momentum), start, 0

    def begin_epoch(self, number: int, predict: Callable[[], Tensor]) -> None:
        self.epoch = number

    def draw(self, batch: Batch, generator: Generator | None = None, model: nn.Module | None = None) -> Batch:
        """A batch whose targets are label and row, [batch, 2]."""
        return self.memory.drawn(batch)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        labels, rows = targets.unbind(1)
        if self.epoch <= self.start:
            return cross_entropy(outputs, labels)
        soft = self.memory.updated(rows, outputs.detach().softmax(1)).to(outputs)
        weights = soft.amax(1)
        return weights / weights.mean() * F.cross_entropy(outputs, soft, reduction="none")

    def state(self) -> dict[str, Tensor]:
        return {**self.memory.state(), "epoch": torch.tensor(self.epoch)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.memory.load(state)
        self.epoch = int(state["epoch"])
