"""Averaged weights in place of the last ones, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from genmeasure.data.batches import Batch
from genmeasure.layers import forward
from genmeasure.training.evaluate import kept_modes
from genmeasure.training.pieces import Average


@contextmanager
def averaged(model: nn.Module, average: Average | None, examples: Batch, batch_size: int) -> Iterator[None]:
    """Inside the block the model has the averaged weights, with the running statistics that the training examples give
    them; afterwards it is as before. Without an average, or before its first update, nothing happens."""
    weights = None if average is None else average.weights()
    if weights is None:
        yield
        return
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        model.load_state_dict(weights, strict=False)
        sample = next(iter(weights.values()))
        with kept_modes(model):
            update_bn((part.to(sample.device, sample.dtype) for part in examples.split(batch_size)), _Model(model))
        yield
    finally:
        model.load_state_dict(before)


class _Model(nn.Module):
    """The model as a function of a batch, which is what `update_bn` passes on."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    @torch.no_grad()
    def forward(self, batch: Batch):
        return forward(self.model, batch)
