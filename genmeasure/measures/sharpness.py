"""Sharpness: how much the loss rises near the weights, at worst and on average."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from genmeasure.curvature.ascent import worst_case
from genmeasure.curvature.noise import ISOTROPIC, Curve, Spreads
from genmeasure.errors import InputError
from genmeasure.estimate import Estimate, propagate
from genmeasure.measures.noise_stability import curve
from genmeasure.registry import measure
from genmeasure.subject import Subject

LADDER, START, SMALLEST, LARGEST = 4, 1e-3, 1e-8, 1e4
"""The search for a sigma looks at so many at once, each twice the one before, from `START` on and within the ends."""


@measure("sharpness", index=("term",), costly=True,
         unit={"*one-step": "loss", "*ascent": "loss", "*average": "loss", "sigma": "weight", "adaptive-sigma": ""},
         source="Foret et al. 2021, arXiv:2010.01412; Kwon et al. 2021, arXiv:2102.11600; Jiang et al. 2020, "
                "arXiv:1912.02178")
def sharpness(subject: Subject, *, rho: float = 0.05, adaptive_rho: float = 0.5, steps: int = 10,
              increase: float = 0.1, rtol: float = 0.05, max_passes: int = 20, seed: int = 0) -> dict[str, Estimate]:
    """Largest and mean increase of the training loss in a ball around the weights, and the sigma that raises it so far.

    `one-step`: at the end of a step of length rho up the gradient of all the data (SAM). `ascent`: the largest that
    `steps` steps of projected ascent find from there, a lower bound of the true maximum. `average`: the mean under
    Gaussian noise of that length, standard deviation rho / sqrt(number of weights). `adaptive-`: the same with every
    weight measured in units of its size (ASAM), in a ball of adaptive_rho.

    `sigma`: the standard deviation (not the variance) of weight noise that raises the mean loss by `increase`, up to
    which it rises by less: the PAC-Bayes measure; `adaptive-sigma` with noise relative to each weight's size. Missing
    where no sigma within 1e-8 and 1e4 does. Its standard error and that of the averages come from the draws; the other
    terms are exact.
    """
    if not (rho > 0 and adaptive_rho > 0 and increase > 0):
        raise InputError(f"rho={rho:g}, adaptive_rho={adaptive_rho:g} and increase={increase:g} came; give numbers "
                         "above zero")
    size = sum(w.numel() for w in subject.risk.weights.values())
    result: dict[str, Estimate] = {}
    for prefix, spreads, radius in (("", ISOTROPIC, rho), ("adaptive-", Spreads("weight"), adaptive_rho)):
        def drawn(*sigmas: float, precision: float = rtol, spreads: Spreads = spreads) -> Curve:
            return curve(subject, sigmas=sigmas, spreads=spreads, rtol=precision, atol=0.0, max_passes=max_passes,
                         seed=seed)
        one, most = worst_case(subject.risk, spreads.of(subject.risk), radius, steps)
        result[f"{prefix}one-step"], result[f"{prefix}ascent"] = Estimate(one), Estimate(most)
        result[f"{prefix}average"] = drawn(radius / math.sqrt(size)).estimates()[0]
        sigma = tolerated(drawn, increase)
        if sigma is not None:
            result[f"{prefix}sigma"] = sigma
    return result


def tolerated(drawn: Callable[..., Curve], increase: float) -> Estimate | None:
    """The sigma at which the drawn curve first reaches `increase`; None where it does not within the ends.

    drawn: (*sigmas, precision=…) -> their curve. Between the points of the grid I(sigma) is a power of sigma; the
    standard error follows from the curve's.
    """
    low = START
    for _ in range(40):
        sigmas = [low * 2**i for i in range(LADDER)]
        values = drawn(*sigmas, precision=math.inf).value.tolist()
        above = next((i for i, value in enumerate(values) if value > increase), LADDER)
        if 0 < above < LADDER:
            return _crossing(drawn, sigmas[above - 1], increase)
        low = low / 2 ** (LADDER - 1) if above == 0 else sigmas[-1]
        if not SMALLEST <= low <= LARGEST:
            break
    return None


def _crossing(drawn: Callable[..., Curve], low: float, increase: float) -> Estimate:
    """By interpolation of log I over log sigma on four sigmas from `low` to its double."""
    sigmas = [low * 2 ** (i / 3) for i in range(4)]
    found = drawn(*sigmas)
    values = found.value.tolist()
    above = next((i for i in range(1, 4) if values[i] > increase), 3)
    places = torch.tensor([math.log(s) for s in sigmas[above - 1:above + 1]], dtype=torch.float64)

    def solved(x: torch.Tensor) -> torch.Tensor:
        left, right = x.clamp(min=1e-300).log()
        slope = (right - left) / (places[1] - places[0])
        return (places[0] + (math.log(increase) - left) / slope).exp()
    part = slice(above - 1, above + 1)
    return propagate(solved, found.value[part], found.covariance[part, part], found.draws)
