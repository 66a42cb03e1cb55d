"""Random draws that are tied to a purpose, a seed, a pass and a batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from genmeasure.data.batches import Batch


def generator(purpose: str, *numbers: int) -> torch.Generator:
    """A CPU generator that is the same in any process; purpose and numbers keep draws independent of each other."""
    mixed = np.random.SeedSequence([*purpose.encode(), *numbers]).generate_state(1)  # torch reads 32 bits of a seed
    return torch.Generator().manual_seed(int(mixed[0]))


def batch_generator(purpose: str, seed: int, number: int, batch: Batch) -> torch.Generator:
    """The generator of pass `number` on a batch: the same in any process and on any device.

    purpose keeps the draws of different estimators independent of each other under one seed.
    """
    return generator(purpose, seed, number, batch.index)


def rademacher(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Independent signs, int8."""
    return torch.randint(0, 2, shape, generator=generator, dtype=torch.int8) * 2 - 1
