"""Loss and error of a classifier."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from genmeasure.data.batches import Batch
from genmeasure.layers import forward
from genmeasure.losses import cross_entropy, zero_one


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Training and evaluation modes of all modules are afterwards as before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch]) -> tuple[float, float]:
    """Mean cross-entropy in nats and fraction of wrong labels, in evaluation mode, on the targets as given."""
    sample = next(p for p in model.parameters() if p.is_floating_point())
    losses, errors, examples = 0.0, 0.0, 0
    with kept_modes(model):
        model.eval()
        for batch in batches:
            batch = batch.to(sample.device, sample.dtype)
            outputs = forward(model, batch)
            losses = losses + cross_entropy(outputs, batch.targets).sum().item()
            errors = errors + zero_one(outputs, batch.targets).sum().item()
            examples += len(batch)
    return losses / examples, errors / examples


@torch.no_grad()
def predict(model: nn.Module, examples: Batch, batch_size: int) -> Tensor:
    """Outputs [n, classes] in evaluation mode, on the model's device."""
    sample = next(p for p in model.parameters() if p.is_floating_point())
    with kept_modes(model):
        model.eval()
        return torch.cat([forward(model, part.to(sample.device, sample.dtype)) for part in examples.split(batch_size)])
