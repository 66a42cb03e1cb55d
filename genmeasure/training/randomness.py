"""Global random numbers, seeded for a while."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside the block the global generators of the CPU and of `device` start from `seed` (layers such as dropout take
    no generator of their own); afterwards they are as before."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        before = torch.mps.get_rng_state() if device.type == "mps" else None
        try:
            seed_globally(seed, device)
            yield
        finally:
            if before is not None:
                torch.mps.set_rng_state(before)


def seed_globally(seed: int, device: torch.device) -> None:
    """The global generators of the CPU and of `device` alone, where torch.manual_seed would reseed all devices."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def global_state(device: torch.device) -> dict[str, torch.Tensor]:
    """States of the global generators of the CPU and of `device`."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        module = torch.get_device_module(device)
        states["device"] = module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)
    return states


def set_global_state(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Put them back to what `global_state` returned."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu":
        module = torch.get_device_module(device)
        module.set_rng_state(states["device"], *([] if device.type == "mps" else [device]))


def rewinder(device: torch.device) -> Callable[[], None]:
    """A function that puts the global generators of the CPU and of `device` back to where they are now, so that a pass
    repeats the draws (dropout) of the one before it."""
    return functools.partial(set_global_state, global_state(device), device)
