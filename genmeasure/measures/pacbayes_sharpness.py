"""Sharpness measures of Jiang et al. 2020: how much weight noise costs a tenth of the accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from genmeasure.curvature.draws import generator
from genmeasure.data.batches import Batch
from genmeasure.errors import InputError
from genmeasure.estimate import Estimate
from genmeasure.losses import zero_one
from genmeasure.registry import measure
from genmeasure.risk import FORWARD
from genmeasure.subject import Subject

LARGEST = 2.0
"""Standard deviations are looked for up to here."""
EPSILON = 1e-3
"""Of the magnitude-aware noise, for weights near zero."""


def tolerated(drop: Callable[[float], float], deviation: float, depth: int) -> float:
    """The largest sigma in (0, LARGEST] at which the accuracy drops by no more than `deviation`, by bisection."""
    low, high = 0.0, LARGEST
    if drop(high) <= deviation:
        return high
    for _ in range(depth):
        middle = (low + high) / 2
        low, high = (middle, high) if drop(middle) <= deviation else (low, middle)
    return low if low > 0 else high


def isotropic(squared_norm: float, sigma: float, n: int) -> float:
    """sqrt( (|v|^2 / (4 sigma^2) + ln(n/sigma) + 10) / n )."""
    return math.sqrt(max(squared_norm / (4 * sigma**2) + math.log(n / sigma) + 10, 0.0) / n)


def magnitude_aware(moves: Tensor, reference: float, sigma: float, n: int) -> float:
    """sqrt( (1/4 sum_i ln((e^2 + (s^2 + 1) |ref|^2 / w) / (e^2 + s^2 v_i^2)) + ln(n/s) + 10) / n ), w = len(v)."""
    top = EPSILON**2 + (sigma**2 + 1) * reference / moves.numel()
    total = (math.log(top) - (EPSILON**2 + sigma**2 * moves.square()).log()).sum().item()
    return math.sqrt(max(total / 4 + math.log(n / sigma) + 10, 0.0) / n)


@measure("pacbayes-sharpness", index=("term",), needs=("classes",), costly=True, unit={"sigma": "weight"},
         source="Jiang et al. 2020, arXiv:1912.02178; Keskar et al. 2017, arXiv:1609.04836; bounds.md 4")
def pacbayes_sharpness(subject: Subject, *, deviation: float = 0.1, draws: int = 10, depth: int = 10,
                       seed: int = 0) -> dict[str, Estimate]:
    """The noise that the training accuracy bears, and the PAC-Bayes measures that Jiang et al. build from it.

    `sigma`: along each of `draws` directions of Gaussian noise on the layers' weights the largest standard deviation,
    up to 2, at which the training accuracy drops by at most `deviation`, found by bisection of that depth; their mean.
    `magnitude-sigma`: the same for noise in proportion to each weight's size. With v = W - W(start), n examples:
    `pacbayes-init` = sqrt((|v|^2/(4 sigma^2) + ln(n/sigma) + 10)/n), `pacbayes-orig` with |W|, `flatness` =
    1/(sigma sqrt n), and `magnitude-init`, `-orig` and `-flatness` accordingly; `error`: without noise. (Jiang et al.
    search the sigma of the mean drop over directions; one for each has a standard error.) Raises `InputError` for fewer
    than two draws.
    """
    if draws < 2 or not 0 < deviation < 1:
        raise InputError(f"draws={draws} and deviation={deviation} came; give two draws or more, and a share of the "
                         "examples")
    risk, n = subject.risk, subject.train.size

    def wrong(weights: dict[str, Tensor]) -> float:
        def count(batch: Batch) -> Tensor:
            batch = risk.place(batch)
            risk.spend(FORWARD, len(batch))
            return zero_one(risk.outputs(weights, batch), batch.targets).double().sum()
        with torch.no_grad():
            return risk.engine.sum(count, risk.batches).item() / n
    plain = wrong({})
    found: dict[str, list[float]] = {"sigma": [], "magnitude-sigma": []}
    for number in range(draws):
        for name in found:
            noise = generator("pacbayes sharpness", seed, number)
            u = {k: torch.randn(w.shape, generator=noise).to(w) for k, w in risk.weights.items()}
            if name != "sigma":
                u = {k: v * (risk.weights[k].abs() + EPSILON) for k, v in u.items()}
            found[name].append(tolerated(lambda s, u=u: wrong(
                {k: w + s * u[k] for k, w in risk.weights.items()}) - plain, deviation, depth))
    moves = torch.cat([subject.displacement(x).double().flatten().cpu() for x in subject.layers])
    weights = torch.cat([w.double().flatten().cpu() for w in risk.weights.values()])
    squares = {"init": moves.square().sum().item(), "orig": weights.square().sum().item()}
    sigma, magnitude = (Estimate.from_draws(values) for values in found.values())
    result = {"error": Estimate(plain, 0.0, n), "sigma": sigma, "magnitude-sigma": magnitude}
    for kind, square in squares.items():
        result[f"pacbayes-{kind}"] = _at(sigma, lambda s, q=square: isotropic(q, s, n))
        result[f"magnitude-{kind}"] = _at(magnitude, lambda s, q=square: magnitude_aware(moves, q, s, n))
    result["flatness"] = _at(sigma, lambda s: 1 / (s * math.sqrt(n)))
    result["magnitude-flatness"] = _at(magnitude, lambda s: 1 / (s * math.sqrt(n)))
    return result


def _at(sigma: Estimate, formula: Callable[[float], float]) -> Estimate:
    """`formula(sigma)` with its standard error by a central difference."""
    step = 1e-4 * sigma.value
    slope = (formula(sigma.value + step) - formula(sigma.value - step)) / (2 * step)
    return Estimate(formula(sigma.value), abs(slope) * sigma.stderr, sigma.n)
