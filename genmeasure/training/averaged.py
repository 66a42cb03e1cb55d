"""Averaged weights in place of the last ones, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from genmeasure.data.batches import Batch
from genmeasure.layers import forward
from genmeasure.training.evaluate import kept_modes
from genmeasure.training.examples import shuffled_rows
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
        refresh_statistics(model, examples, batch_size)
        yield
    finally:
        model.load_state_dict(before)


@torch.no_grad()
def refresh_statistics(model: nn.Module, examples: Batch, batch_size: int) -> None:
    """Running statistics of BatchNorm layers become the means over the minibatches of the examples, in a fixed order
    at random.

    What `torch.optim.swa_utils.update_bn` does, except that layers which keep no statistics, and those in evaluation
    mode inside a model in training mode (frozen on purpose), stay as they are, and that dropout is off.
    """
    fresh = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
             and m.running_mean is not None and (m.training or not model.training)]
    if not fresh:
        return
    momenta = [m.momentum for m in fresh]
    sample = next(p for p in model.parameters() if p.is_floating_point())
    with kept_modes(model):
        model.eval()
        try:
            for module in fresh:
                module.train()
                module.reset_running_stats()
                module.momentum = None  # the plain mean over batches
            for rows in shuffled_rows(len(examples), batch_size, torch.Generator().manual_seed(0)):
                forward(model, examples.select(rows).to(sample.device, sample.dtype))
        finally:
            for module, momentum in zip(fresh, momenta, strict=True):
                module.momentum = momentum
