"""Global random numbers, seeded for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


def rewinder(device: torch.device) -> Callable[[], None]:
    """A function that puts the global generators of the CPU and of `device` back to where they are now, so that a pass
    repeats the draws (dropout) of the one before it."""
    cpu = torch.get_rng_state()
    module = None if device.type == "cpu" else torch.get_device_module(device)
    there = None if module is None else _get(module, device)

    def rewind() -> None:
        torch.set_rng_state(cpu)
        if module is not None:
            _set(module, there, device)
    return rewind


def _get(module, device: torch.device) -> torch.Tensor:
    return module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)


def _set(module, state: torch.Tensor, device: torch.device) -> None:
    if device.type == "mps":
        module.set_rng_state(state)
    else:
        module.set_rng_state(state, device)
