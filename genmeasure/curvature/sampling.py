"""Sampling of units with probability proportional to a known size, for totals of what is costly to measure.

Sarndal, Swensson & Wretman 1992, Model Assisted Survey Sampling, chapters 3 and 7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def inclusion_probabilities(sizes: Tensor, count: float) -> Tensor:
    """min(1, size / threshold) with the threshold that makes them add up to `count`: [m], float64.

    sizes: [m], not negative. They grow with `count`, so samples of one set of random numbers are nested.
    """
    sizes = sizes.double()
    positive = int((sizes > 0).sum())
    if count >= positive:
        return (sizes > 0).double()
    ordered = sizes.sort(descending=True).values
    rest = ordered.flip(0).cumsum(0).flip(0)  # what is left from each unit on
    certain = torch.arange(len(ordered), dtype=torch.float64)
    threshold = rest / (count - certain).clamp(min=1e-300)
    first = int(((ordered <= threshold) & (certain < count)).int().argmax())  # the largest unit that is not certain
    return (sizes / threshold[first]).clamp(max=1.0)


@dataclass(frozen=True)
class Total:
    """An estimated total [k] and the independent residuals [n, k] whose squares and products tell its covariance."""

    value: Tensor
    residuals: Tensor

    @property
    def covariance(self) -> Tensor:
        """[k, k]; nan where it is unknown."""
        return self.residuals.T @ self.residuals

    def degrees_of_freedom(self, watch: Tensor) -> Tensor:
        """Of the variances of linear combinations `watch` [m, k] of the entries, [m]."""
        return degrees_of_freedom((self.residuals @ watch.T).square())


def degrees_of_freedom(squares: Tensor) -> Tensor:
    """Of variances that are sums of independent squares [n, m], for each column, [m].

    2 / (squared coefficient of variation of the sum), from the squares' own spread: n for Gaussian residuals, few where
    a few of them carry the sum. inf for a column without variance, 0 for one of unknown variance.
    """
    n = max(1, len(squares))
    sums = squares.sum(0)
    excess = (squares / sums).square().sum(0) - 1 / n
    found = torch.where(sums == 0, torch.inf, 2 / excess.clamp(min=2 / (3 * n)))
    return found.nan_to_num(0.0, posinf=torch.inf)


def estimated_total(sizes: Tensor, probabilities: Tensor, sampled: Tensor, ratios: Tensor) -> Total:
    """Total of size * ratio over all units, from the ratios [s, k] of the sampled units (positions `sampled` [s]).

    Units of probability one are added up. For the others the mean of the ratios times the total of their sizes: the
    ratio estimator with the size as auxiliary, which needs no sample of fixed length. Its variance comes from the
    residuals; units that were nearly certain count less. nan where a single unit was drawn.
    """
    size, probability = sizes.double()[sampled], probabilities[sampled]
    ratios = ratios.double()
    certain = probability >= 1
    value = size[certain] @ ratios[certain]
    drawn, weight = ratios[~certain], 1 - probability[~certain]
    n, k = len(drawn), ratios.shape[1]
    uncertain_total = sizes.double()[probabilities < 1].sum()
    if uncertain_total == 0:
        return Total(value, torch.zeros(0, k, dtype=torch.float64))
    if n < 2:
        return Total(value + (uncertain_total * drawn.mean(0) if n else 0),
                     torch.full((1, k), torch.nan, dtype=torch.float64))
    mean = drawn.mean(0)
    residuals = uncertain_total * (drawn - mean) * weight.sqrt()[:, None] / math.sqrt(n * (n - 1))
    return Total(value + uncertain_total * mean, residuals)


def paired_sample(sizes: Tensor, pairs: int, generator: torch.Generator) -> Tensor:
    """Units [2 * pairs], ascending, each drawn 2 * pairs * size / total times on average and nearly that often.

    The cumulated sizes are cut into as many equal strata; neighbours (2 h, 2 h + 1) are two independent draws in one,
    so that their differences tell the variance of the sample's mean without bias.
    """
    ends = sizes.double().cumsum(0)
    offsets = torch.rand(pairs, 2, generator=generator, dtype=torch.float64).sort(1).values
    points = (torch.arange(pairs, dtype=torch.float64)[:, None] + offsets).flatten() / pairs * ends[-1]
    return torch.searchsorted(ends, points, right=True).clamp(max=int(sizes.nonzero()[-1]))


def paired_mean(values: Tensor) -> Total:
    """The mean of values [2 * pairs, k], two draws from each stratum after another."""
    return Total(values.mean(0), (values[::2] - values[1::2]) / len(values))
