"""The Hessian approximation of the noise stability, and where it holds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genmeasure.curvature.noise import Curve, Spreads
from genmeasure.curvature.scaled_trace import scaled_traces
from genmeasure.errors import second_derivative
from genmeasure.estimate import Estimate, propagate
from genmeasure.measures import hessian_trace
from genmeasure.measures.noise_stability import MAX_PASSES, RTOL, SIGMAS, curve, grid, groups, surveyed
from genmeasure.registry import measure
from genmeasure.subject import Subject

TOLERANCE = 0.1
"""The parabola holds where it differs from the measured curve by less than this, relative to the curve."""
PLATEAU = 0.8
"""A loss above this share of log(classes) is on its way to that of a model that guesses (measures.md 7.1)."""
Key = tuple[str, float | None, str]


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
         unit={"taylor": "loss", "paper": "loss", "valid-from": "weight", "valid-to": "weight",
               "plateau-from": "weight"})
def hessian_approximation(subject: Subject, *, sigmas: tuple[float, ...] = SIGMAS, per_layer: bool = False,
                          covariance: str = "isotropic", layer_sigmas: tuple[float, ...] = (), rtol: float = RTOL,
                          max_passes: int = MAX_PASSES, trace_rtol: float = hessian_trace.RTOL,
                          trace_max_passes: int = hessian_trace.MAX_PASSES, seed: int = 0) -> dict[Key, Estimate]:
    """sigma^2/2 times the Hessian trace (`taylor`), beside the measured noise stability.

    `paper` is the published variant sigma^2 times the trace, without the 1/2. `relative-difference` is
    (stability - taylor) / stability, `relative-rss` sums squares over all sigmas; both carry the errors of curve and
    trace. `valid-from` and `valid-to` (points of the grid, of unknown error) span the longest run of sigmas where the
    two differ by less than 10 %; from `plateau-from` on the perturbed loss of a classifier is above 0.8 log(classes).
    They are missing where there is none.

    per_layer, covariance, layer_sigmas: as for `noise-stability`; the trace is then the sum over weights of their
    second derivative times the square of their noise's size. For `covariance=weight` it is drawn by Hutchinson's
    method, at nine forward passes a draw.
    """
    sigmas, spreads = grid(sigmas), Spreads(covariance, tuple(layer_sigmas))
    found = _traces(subject, spreads, per_layer, trace_rtol, trace_max_passes, seed)
    result: dict[Key, Estimate] = {}
    for name, layer in groups(subject, per_layer).items():
        drawn = curve(subject, layer, sigmas=sigmas, spreads=spreads, rtol=rtol, atol=0.0, max_passes=max_passes,
                      seed=seed)
        for (sigma, term), value in _compared(sigmas, drawn, found[name]).items():
            result[name, sigma, term] = value
        if subject.loss.classification:
            level = PLATEAU * math.log(subject.classes) - surveyed(subject).losses.mean().item()
            late = [s for s, i in sorted(zip(sigmas, drawn.value.tolist(), strict=True)) if i > level]
            if late:
                result[name, None, "plateau-from"] = Estimate(late[0], math.nan, drawn.draws)
    return result


def _traces(subject: Subject, spreads: Spreads, per_layer: bool, rtol: float, max_passes: int,
            seed: int) -> dict[str, Estimate]:
    """sum of spread^2 times second derivatives, for the layers' names and `total`."""
    sizes = spreads.of(subject.risk)
    setting = {"rtol": rtol, "max_passes": max_passes, "seed": seed}
    if spreads.covariance == "weight":
        with second_derivative():
            found = subject.remember(f"scaled traces {spreads} {setting}",
                                     lambda: scaled_traces(subject.risk, sizes, **setting))
        weights = torch.ones(len(sizes), dtype=torch.float64)
    else:
        found = hessian_trace.traces(subject, route="auto", layer_rtol=hessian_trace.LAYER_RTOL, atol=0.0, **setting)
        weights = torch.tensor(list(sizes.values()), dtype=torch.float64).square()
    rows = dict(zip(sizes, torch.diag(weights), strict=True)) if per_layer else {}
    return {name: found.estimate(row) for name, row in {**rows, "total": weights}.items()}


def _compared(sigmas: tuple[float, ...], drawn: Curve, trace: Estimate) -> dict[tuple[float | None, str], Estimate]:
    """Every term by sigma, from a drawn curve and a trace that is independent of it."""
    s, k = torch.tensor(sigmas, dtype=torch.float64), len(sigmas)
    value = torch.cat([drawn.value, torch.tensor([trace.value], dtype=torch.float64)])
    covariance = torch.block_diag(drawn.covariance, torch.tensor([[trace.stderr**2]], dtype=torch.float64))
    result: dict[tuple[float | None, str], Estimate] = {}
    differences = []
    for i, sigma in enumerate(sigmas):
        result[sigma, "taylor"] = trace.scaled(sigma**2 / 2)
        result[sigma, "paper"] = trace.scaled(sigma**2)
        result[sigma, "relative-difference"] = propagate(lambda x, i=i: 1 - s[i] ** 2 / 2 * x[k] / x[i], value,
                                                         covariance, drawn.draws)
        differences.append(result[sigma, "relative-difference"].value)
    for term, factor in (("relative-rss", 0.5), ("relative-rss-paper", 1.0)):
        result[None, term] = propagate(lambda x, f=factor: relative_rss(x[:k], f * s**2 * x[k]), value, covariance,
                                       drawn.draws)
    valid = valid_range(sigmas, differences)
    if valid is not None:
        result[None, "valid-from"], result[None, "valid-to"] = (
            Estimate(sigma, math.nan, drawn.draws) for sigma in valid)
    return result
