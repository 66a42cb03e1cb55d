"""Running statistics of normalisation layers, held still while weights are perturbed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Inside the block forward passes leave running statistics alone and still normalise by the batch.

    Holds for every module with such buffers (all BatchNorm types, tracked InstanceNorm) and any momentum; blocks may
    be nested.
    """
    # passes update a copy: setting momentum to 0 would still count batches, and would turn 0 * inf into nan
    held = [(module, name, buffer) for module in model.modules() for name in STATISTICS
            if (buffer := module._buffers.get(name)) is not None]
    try:
        for module, name, buffer in held:
            module._buffers[name] = buffer.clone()
        yield
    finally:
        for module, name, buffer in held:
            module._buffers[name] = buffer


def has_statistics(model: nn.Module) -> bool:
    """Whether a forward pass in the present mode would change running statistics."""
    return any(module.training and module._buffers.get("running_mean") is not None for module in model.modules())
