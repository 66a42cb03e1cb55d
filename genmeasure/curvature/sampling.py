"""Sampling of units with probability proportional to a known size, for totals of what is costly to measure.

Sarndal, Swensson & Wretman 1992, Model Assisted Survey Sampling, chapters 3 and 7.
"""

from __future__ import annotations

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
    """An estimated total [k] and its covariance [k, k]; `uncertain` units were drawn, all others are known."""

    value: Tensor
    covariance: Tensor
    uncertain: int


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
        return Total(value, torch.zeros(k, k, dtype=torch.float64), 0)
    if n < 2:
        return Total(value + (uncertain_total * drawn.mean(0) if n else 0),
                     torch.full((k, k), torch.nan, dtype=torch.float64), n)
    mean = drawn.mean(0)
    residual = (drawn - mean) * weight.sqrt()[:, None]
    covariance = uncertain_total**2 * (residual.T @ residual) / (n * (n - 1))
    return Total(value + uncertain_total * mean, covariance, n)


def systematic_sample(sizes: Tensor, count: int, start: float) -> Tensor:
    """`count` units [count], ascending, each drawn count * size / total times on average and almost exactly so often.

    start: in [0, 1), uniform; the points (start + j) / count of the cumulated sizes are taken.
    """
    ends = sizes.double().cumsum(0)
    points = (torch.arange(count, dtype=torch.float64) + start) / count * ends[-1]
    return torch.searchsorted(ends, points, right=True).clamp(max=int(sizes.nonzero()[-1]))


def doubled(start: float) -> tuple[float, float]:
    """What a systematic sample from `start` needs to be twice as dense: the start of the new points, and of them all.

    With `count` points from the first, and `count` from the second of these: `(start + 1/2) mod 1` lies between the old
    points, and 2 start mod 1 is where a sample of 2 count points that holds both begins.
    """
    return (start + 0.5) % 1, (2 * start) % 1
