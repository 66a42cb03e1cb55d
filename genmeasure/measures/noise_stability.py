"""Noise stability of the loss."""

from __future__ import annotations

from collections.abc import Sequence

from genmeasure.curvature.noise import noise_curve
from genmeasure.errors import InputError
from genmeasure.estimate import Estimate, StratifiedMean
from genmeasure.predictions import predictions
from genmeasure.registry import measure
from genmeasure.subject import Subject

SIGMAS = (0.0005, 0.0008, 0.00125, 0.002, 0.0032, 0.005, 0.008, 0.0125, 0.02, 0.032, 0.05)
"""Eleven standard deviations, five per decade: from where the parabola holds to where the loss saturates."""

RTOL, MAX_PASSES = 0.05, 20


def grid(sigmas: float | Sequence[float]) -> tuple[float, ...]:
    """One or several standard deviations as a tuple; `InputError` unless all are positive."""
    found = (sigmas,) if isinstance(sigmas, (int, float)) else tuple(sigmas)
    if not found or min(found) <= 0:
        raise InputError(f"the sigmas {found} came; standard deviations must be positive")
    return found


def curve(subject: Subject, *, sigmas: tuple[float, ...], one_sided: bool, rtol: float, atol: float, max_passes: int,
          seed: int) -> StratifiedMean:
    """The drawn curve over `sigmas` with its covariance, computed once per subject and setting."""
    setting = {"sigmas": sigmas, "one_sided": one_sided, "rtol": rtol, "atol": atol, "max_passes": max_passes,
               "seed": seed}
    return subject.remember(f"noise {setting}", lambda: noise_curve(subject.risk, **setting))


@measure("noise-stability", index=("layer", "sigma", "term"), unit="loss",
         source="Ju, Li & Zhang 2022, arXiv:2206.02659; measures.md 6")
def noise_stability(subject: Subject, *, sigmas: tuple[float, ...] = SIGMAS, one_sided: bool = False,
                    rtol: float = RTOL, atol: float = 0.0, max_passes: int = MAX_PASSES,
                    seed: int = 0) -> dict[tuple[str, float, str], Estimate]:
    """I(sigma) = E L(W + U) - L(W) on the training data, U ~ N(0, sigma^2) on every selected weight.

    sigma is a standard deviation. Draws are antithetic pairs +-U, one U per batch and pass for all sigmas; one_sided
    draws +U only, as the papers do. `perturbed-loss` is E L(W + U). Stops when every sigma has a relative standard
    error of `rtol`, an absolute one of `atol`, or after `max_passes`.
    """
    sigmas = grid(sigmas)
    drawn = curve(subject, sigmas=sigmas, one_sided=one_sided, rtol=rtol, atol=atol, max_passes=max_passes, seed=seed)
    loss = predictions(subject).loss.mean().item()
    result: dict[tuple[str, float, str], Estimate] = {}
    for sigma, value in zip(sigmas, drawn.estimates(), strict=True):
        result["total", sigma, "stability"] = value
        result["total", sigma, "perturbed-loss"] = Estimate(loss + value.value, value.stderr, value.n)
    return result
