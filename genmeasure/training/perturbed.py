"""Weights moved for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def perturbed(parameters: Sequence[Tensor], offsets: Sequence[Tensor], sign: float = 1.0) -> Iterator[None]:
    """Inside the block each parameter is larger by `sign` times its offset; afterwards it is bit for bit as before.

    Run the backward pass inside the block too: coming back counts as an in-place change.
    """
    before = [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            for p, offset in zip(parameters, offsets, strict=True):
                p.add_(offset, alpha=sign)
        yield
    finally:
        # subtracting the offset would leave rounding errors that add up over the steps
        with torch.no_grad():
            for p, value in zip(parameters, before, strict=True):
                p.copy_(value)
