"""Running statistics of normalisation layers, held still while weights are perturbed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside the block forward passes leave running statistics alone and still normalise by the batch.

    Holds for every module with such buffers (all BatchNorm types, tracked InstanceNorm) and any momentum; blocks may
    be nested. Yields the copies that the block's passes update in their place, for `adopt_mean`.
    """
    # passes update a copy: setting momentum to 0 would still count batches, and would turn 0 * inf into nan
    held = [(module, name, buffer) for module in model.modules() for name in STATISTICS
            if (buffer := module._buffers.get(name)) is not None]
    copies = [buffer.clone() for _, _, buffer in held]
    try:
        for (module, name, _), copy in zip(held, copies, strict=True):
            module._buffers[name] = copy
        yield copies
    finally:
        for module, name, buffer in held:
            module._buffers[name] = buffer


@torch.no_grad()
def adopt_mean(model: nn.Module, passes: Sequence[Sequence[Tensor]]) -> None:
    """Set running statistics to the mean of those that several passes reached, each from the same ones and each of one
    batch, which is counted once. passes: what `frozen_statistics` yielded to each."""
    own = [buffer for module in model.modules() for name in STATISTICS
           if (buffer := module._buffers.get(name)) is not None]
    for buffer, *reached in zip(own, *passes, strict=True):
        buffer.copy_(torch.stack(reached).mean(0) if buffer.is_floating_point() else reached[0])


def has_statistics(model: nn.Module) -> bool:
    """Whether a forward pass in the present mode would change running statistics."""
    return any(module.training and module._buffers.get("running_mean") is not None for module in model.modules())
