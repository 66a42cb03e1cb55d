"""Numbers and how well they are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and how well it is known.

    `stderr` is the standard error of `value`: 0 where the value is exact up to rounding, nan where a single
    draw leaves it unknown. `n` counts the independent draws (or the examples averaged over).
    """

    value: float
    stderr: float = 0.0
    n: int = 1

    @classmethod
    def from_draws(cls, draws: Sequence[float] | Tensor) -> Estimate:
        """Mean of independent, identically distributed `draws` [n] and its standard error (ddof 1)."""
        x = torch.as_tensor(draws, dtype=torch.float64)
        n = x.numel()
        if n == 0:
            raise ValueError("no draws came; at least one is needed for an estimate")
        stderr = x.std(correction=1).item() / math.sqrt(n) if n > 1 else math.nan
        return cls(x.mean().item(), stderr, n)

    @property
    def exact(self) -> bool:
        return self.stderr == 0.0

    def scaled(self, factor: float) -> Estimate:
        return Estimate(self.value * factor, self.stderr * abs(factor), self.n)


class Estimates(dict):
    """Estimates by key, with what was found out on the way and decides how to read them (`found`, JSON values)."""

    def __init__(self, estimates: Mapping[Any, Estimate], **found: Any):
        super().__init__(estimates)
        self.found = found


def propagate(formula: Callable[[Tensor], Tensor], value: Tensor, covariance: Tensor, n: int = 1) -> Estimate:
    """`formula(value)` with its standard error to first order (the delta method).

    formula: maps a float64 vector [k] to a scalar, in torch operations.
    value: [k]; covariance: [k, k], the covariance of `value`'s entries.
    """
    point = value.detach().to(torch.float64).requires_grad_()
    with torch.enable_grad():
        result = formula(point)
        (slope,) = torch.autograd.grad(result, point)
    variance = slope @ covariance.to(torch.float64) @ slope
    return Estimate(result.item(), math.sqrt(max(variance.item(), 0.0)), n)


class StratifiedMean:
    """Mean over a data set of quantities that are drawn anew for every batch, pass after pass.

    Every batch is a stratum. One pass brings one draw of the sum over each batch's examples. Because the draws of
    different batches are independent, the variance of the total is the sum over batches of the variance within a
    batch between passes: already two passes over many batches give a usable standard error.
    """

    def __init__(self, examples: int):
        self.examples = examples
        self.passes = 0
        self.strata = 0
        self._mean: Tensor | None = None
        self._scatter: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, sums: Tensor) -> None:
        """One pass: `sums` [batches, k], entry b the drawn sum over the examples of batch b."""
        x = sums.to(dtype=torch.float64, device="cpu")
        if self._mean is None:
            self.strata = x.shape[0]
            self._mean = torch.zeros_like(x)
            self._squares = torch.zeros_like(x)
            self._scatter = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
        self.passes += 1
        before = x - self._mean
        self._mean += before / self.passes
        self._scatter += before.T @ (x - self._mean)
        self._squares += before * (x - self._mean)

    @property
    def degrees_of_freedom(self) -> float:
        """Of the least certain standard error (Welch-Satterthwaite): few where a few batches carry the variance."""
        if self.passes < 2:
            return 0.0
        concentration = self._squares.square().sum(0) / self._squares.sum(0).square()
        return (self.passes - 1) / concentration.nan_to_num(0.0).max().clamp(min=1e-9).item()

    @property
    def value(self) -> Tensor:
        """[k], mean over examples."""
        return self._mean.sum(0) / self.examples

    @property
    def covariance(self) -> Tensor:
        """[k, k], covariance of `value`; nan after a single pass."""
        if self.passes < 2:
            return torch.full_like(self._scatter, math.nan)
        return self._scatter / (self.passes * (self.passes - 1)) / self.examples**2

    @property
    def stderr(self) -> Tensor:
        return self.covariance.diagonal().sqrt()

    def estimate(self, weights: Tensor | None = None) -> Estimate:
        """The linear combination `weights` [k] of the entries (all ones if None); correlations are accounted for."""
        w = torch.ones(self._mean.shape[1], dtype=torch.float64) if weights is None else weights.to(torch.float64)
        return Estimate((w @ self.value).item(), math.sqrt(max((w @ self.covariance @ w).item(), 0.0))
                        if self.passes > 1 else math.nan, self.passes)

    def estimates(self) -> list[Estimate]:
        return [Estimate(v, s, self.passes) for v, s in zip(self.value.tolist(), self.stderr.tolist(), strict=True)]


MIN_DEGREES_OF_FREEDOM = 20
"""Below this the standard error is itself too uncertain to stop on."""


def until_precise(draw: Callable[[int], Tensor], examples: int, *, rtol: float | Tensor, atol: float = 0.0,
                  numbers: Iterable[int], watch: Tensor | None = None) -> StratifiedMean:
    """Draw passes until every watched quantity has a standard error of at most `max(atol, rtol * |value|)`.

    draw: pass number -> [batches, k] sums over each batch's examples.
    watch: [m, k] linear combinations that must be precise; None watches all k entries. rtol: one, or one of each [m].
    numbers: of the passes, at most that many; the standard error says what was reached.
    """
    mean = StratifiedMean(examples)
    for number in numbers:
        mean.add(draw(number))
        if mean.degrees_of_freedom < MIN_DEGREES_OF_FREEDOM:
            continue
        w = torch.eye(mean.value.numel(), dtype=torch.float64) if watch is None else watch.to(torch.float64)
        stderr = (w @ mean.covariance @ w.T).diagonal().clamp(min=0).sqrt()
        if bool((stderr <= (rtol * (w @ mean.value).abs()).clamp(min=atol)).all()):
            break
    return mean
