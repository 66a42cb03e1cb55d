"""The Hessian approximation of the noise stability, and where it holds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genmeasure.estimate import Estimate, propagate
from genmeasure.measures import hessian_trace
from genmeasure.measures.noise_stability import MAX_PASSES, RTOL, SIGMAS, curve, grid
from genmeasure.registry import measure
from genmeasure.subject import Subject

TOLERANCE = 0.1
"""The parabola holds where it differs from the measured curve by less than this, relative to the curve."""


def relative_rss(stability: Tensor, approximation: Tensor) -> Tensor:
    """sum (stability - approximation)^2 / sum stability^2 (measures.md 7.2)."""
    return (stability - approximation).square().sum() / stability.square().sum()


def valid_range(sigmas: tuple[float, ...], relative_difference: list[float]) -> tuple[float, float] | None:
    """The longest run of consecutive sigmas with |relative difference| below `TOLERANCE`; None where there is none."""
    best: list[float] = []
    run: list[float] = []
    for sigma, difference in sorted(zip(sigmas, relative_difference, strict=True)):
        run = [*run, sigma] if abs(difference) < TOLERANCE else []
        best = run if len(run) > len(best) else best
    return (best[0], best[-1]) if best else None


@measure("hessian-approximation", index=("layer", "sigma", "term"), source="measures.md 7; Ju, Li & Zhang 2022",
         unit={"taylor": "loss", "paper": "loss", "valid-from": "weight", "valid-to": "weight"})
def hessian_approximation(subject: Subject, *, sigmas: tuple[float, ...] = SIGMAS, rtol: float = RTOL,
                          max_passes: int = MAX_PASSES, trace_rtol: float = hessian_trace.RTOL,
                          trace_max_passes: int = hessian_trace.MAX_PASSES,
                          seed: int = 0) -> dict[tuple[str, float | None, str], Estimate]:
    """sigma^2/2 times the Hessian trace (`taylor`), beside the measured noise stability.

    `paper` is the published variant sigma^2 times the trace, without the 1/2. `relative-difference` is
    (stability - taylor) / stability, `relative-rss` sums squares over all sigmas; both carry the errors of curve and
    trace. `valid-from` and `valid-to` (points of the grid, of unknown error) span the longest run of sigmas where the
    two differ by less than 10 %; they are missing where there is none.
    """
    sigmas = grid(sigmas)
    found = hessian_trace.traces(subject, route="auto", rtol=trace_rtol, layer_rtol=hessian_trace.LAYER_RTOL, atol=0.0,
                                 max_passes=trace_max_passes, seed=seed)
    drawn = curve(subject, sigmas=sigmas, one_sided=False, rtol=rtol, atol=0.0, max_passes=max_passes, seed=seed)
    trace, s = found.estimate(), torch.tensor(sigmas, dtype=torch.float64)
    k = len(sigmas)
    value = torch.cat([drawn.value, torch.tensor([trace.value], dtype=torch.float64)])
    covariance = torch.zeros(k + 1, k + 1, dtype=torch.float64)
    covariance[:k, :k] = drawn.covariance
    covariance[k, k] = trace.stderr**2

    result: dict[tuple[str, float | None, str], Estimate] = {}
    differences = []
    for i, sigma in enumerate(sigmas):
        result["total", sigma, "taylor"] = trace.scaled(sigma**2 / 2)
        result["total", sigma, "paper"] = trace.scaled(sigma**2)
        difference = propagate(lambda x, i=i: 1 - s[i] ** 2 / 2 * x[k] / x[i], value, covariance, drawn.passes)
        differences.append(difference.value)
        result["total", sigma, "relative-difference"] = difference
    for term, factor in (("relative-rss", 0.5), ("relative-rss-paper", 1.0)):
        result["total", None, term] = propagate(lambda x, f=factor: relative_rss(x[:k], f * s**2 * x[k]), value,
                                                covariance, drawn.passes)
    valid = valid_range(sigmas, differences)
    if valid is not None:
        result["total", None, "valid-from"], result["total", None, "valid-to"] = (
            Estimate(sigma, math.nan, drawn.passes) for sigma in valid)
    return result
