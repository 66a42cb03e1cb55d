"""Global random numbers, seeded for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside the block the global generators of the CPU and of `device` start from `seed` (layers such as dropout take
    no generator of their own); afterwards they are as before."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        # torch.manual_seed would also reseed devices that are not put back
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        if device.type != "mps":
            yield
            return
        before = torch.mps.get_rng_state()
        try:
            torch.mps.manual_seed(seed)
            yield
        finally:
            torch.mps.set_rng_state(before)
