"""Distributions of weight noise: mean zero, variance one, entries independent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from genmeasure.errors import InputError, unknown

FAIR_COINS = (-2.0, -1.0, -1.0, 0.0, -1.0, 0.0, 0.0, 1.0, -1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 2.0)
"""Heads among four coins, less two, for each of the sixteen outcomes."""


def normal(like: Tensor, generator: Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def uniform(like: Tensor, generator: Generator | None) -> Tensor:
    """Between -sqrt(3) and sqrt(3)."""
    return centred(torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device))


def centred(fraction: Tensor) -> Tensor:
    """Uniform between 0 and 1 -> uniform with mean 0 and variance 1."""
    return math.sqrt(3) * (2 * fraction - 1)


def laplace(like: Tensor, generator: Generator | None) -> Tensor:
    """Density exp(-sqrt(2) |x|)/sqrt(2)."""
    first, second = (torch.empty_like(like).exponential_(generator=generator) for _ in range(2))
    return difference(first, second)


def difference(first: Tensor, second: Tensor) -> Tensor:
    """Two independent variables of variance 1 and the same mean -> one with mean 0 and variance 1."""
    return (first - second) / math.sqrt(2)


def binomial(like: Tensor, generator: Generator | None) -> Tensor:
    """Binomial(4, 1/2) less its mean 2; its variance is 1."""
    outcomes = torch.randint(len(FAIR_COINS), like.shape, generator=generator, device=like.device)
    return torch.tensor(FAIR_COINS, dtype=like.dtype, device=like.device)[outcomes]


def rademacher(like: Tensor, generator: Generator | None) -> Tensor:
    """-1 or 1."""
    return 2 * torch.randint(2, like.shape, generator=generator, device=like.device).to(like.dtype) - 1


DISTRIBUTIONS: dict[str, Callable[[Tensor, Generator | None], Tensor]] = {
    "normal": normal, "laplace": laplace, "uniform": uniform, "binomial": binomial, "rademacher": rademacher}


def check_distribution(name: str) -> None:
    """Raises `InputError` for a name that is not known."""
    if name == "cauchy":
        raise InputError("cauchy noise has no variance, so that no sigma describes it and the trace of the Hessian is "
                         f"not what it penalises; take one of {', '.join(DISTRIBUTIONS)}")
    if name not in DISTRIBUTIONS:
        raise unknown("distribution", name, DISTRIBUTIONS)


@torch.no_grad()
def standard_noise(parameters: Sequence[Tensor], distribution: str, generator: Generator | None) -> list[Tensor]:
    """One draw with mean 0 and variance 1, shaped like the parameters."""
    draw = DISTRIBUTIONS[distribution]
    return [draw(p, generator) for p in parameters]
