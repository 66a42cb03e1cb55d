"""The loss of one minibatch as an objective."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from genmeasure.data.batches import Batch
from genmeasure.errors import InputError
from genmeasure.layers import forward
from genmeasure.training.pieces import Objective, TrainLoss
from genmeasure.training.precision import Precision
from genmeasure.training.ranks import Ranks


@dataclass(frozen=True, eq=False)
class MiniBatch(Objective):
    """The mean of `loss` over a drawn batch on the model's device.

    precision: of the passes. accumulate: parts in which the batch is carried through the network one after the other,
    each of two examples at least. ranks: processes among which the batch is divided; what they find is added up once
    for each gradient. Loss and gradient are those of the mean over the whole batch.
    """

    model: nn.Module
    loss: TrainLoss
    batch: Batch
    precision: Precision = field(default_factory=Precision)
    accumulate: int = 1
    ranks: Ranks = field(default_factory=Ranks)

    def graph(self) -> Tensor:
        """Raises `InputError` for a batch that is divided among processes, none of which has all of the graph."""
        if self.ranks.size > 1:
            raise InputError("an algorithm that differentiates a gradient came to several processes, none of which has "
                             "the graph of the whole batch; train in one process")
        return torch.stack([self._share(part) for part in self.parts()]).sum()

    @torch.no_grad()
    def value(self) -> Tensor:
        return self.ranks.sum(sum((self._share(part) for part in self.parts()), self._zero()))

    def gradient(self, weight: float = 1.0) -> Tensor:
        if self.precision.scaler is None and self.ranks.size == 1:
            return self._backward(weight)
        # apart from what is there already, which is not scaled and is added up
        with added(self.model):
            value = self.ranks.sum(self._backward(weight))
            self.ranks.sum_gradients(self.model)
            self.precision.unscale([p.grad for p in self.model.parameters() if p.grad is not None])
        return value

    def _backward(self, weight: float) -> Tensor:
        value = self._zero()
        for part in self.parts():
            share = self._share(part)
            self.precision.scale(weight * share).backward()
            value = value + share.detach()
        return value

    def parts(self) -> list[Batch]:
        mine = self.ranks.share(self.batch)
        count = max(1, min(self.accumulate, len(mine) // 2))
        ends = [len(mine) * i // count for i in range(count + 1)]
        return [mine.select(slice(begin, end)) if count > 1 else mine
                for begin, end in itertools.pairwise(ends) if begin < end]

    def _zero(self) -> Tensor:
        sample = next(p for p in self.model.parameters() if p.is_floating_point())
        return torch.zeros((), device=sample.device, dtype=torch.promote_types(sample.dtype, torch.float32))

    def _share(self, part: Batch) -> Tensor:
        """What a part adds to the mean over the batch."""
        with self.precision.autocast():
            outputs = forward(self.model, part)
        if self.precision.dtype is not None:
            outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return self.loss(outputs, part.targets).sum() / len(self.batch)


@contextmanager
def added(model: nn.Module) -> Iterator[None]:
    """Gradients computed inside the block are added to those of before at its end."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    yield
    for p, old in zip(parameters, before, strict=True):
        if old is not None:
            p.grad = old if p.grad is None else old.add_(p.grad)
