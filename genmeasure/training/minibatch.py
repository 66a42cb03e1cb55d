"""The loss of one minibatch as an objective."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from genmeasure.data.batches import Batch
from genmeasure.layers import forward
from genmeasure.training.pieces import Objective, TrainLoss


@dataclass(frozen=True, eq=False)
class MiniBatch(Objective):
    """The mean of `loss` over a drawn batch on the model's device."""

    model: nn.Module
    loss: TrainLoss
    batch: Batch

    def graph(self) -> Tensor:
        return self.loss(forward(self.model, self.batch), self.batch.targets).mean()
