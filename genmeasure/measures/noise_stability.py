"""Noise stability of the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

from genmeasure.curvature.noise import ISOTROPIC, Curve, Sample, Spreads, noise_curve, one_sided_curve, survey
from genmeasure.errors import InputError
from genmeasure.estimate import Estimate
from genmeasure.layers import Layer
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


def surveyed(subject: Subject) -> Sample:
    """`survey`, computed once per subject."""
    return subject.remember("noise survey", lambda: survey(subject.risk))


def curve(subject: Subject, layer: Layer | None = None, *, sigmas: tuple[float, ...], one_sided: bool = False,
          spreads: Spreads = ISOTROPIC, rtol: float, atol: float, max_passes: int, seed: int) -> Curve:
    """The drawn curve over `sigmas` with noise in one layer, or in all of them, once per subject and setting."""
    setting = {"sigmas": sigmas, "spreads": spreads, "rtol": rtol, "atol": atol, "max_passes": max_passes,
               "seed": seed, "layers": None if layer is None else (layer,)}

    def compute() -> Curve:
        if one_sided:
            return one_sided_curve(subject.risk, surveyed(subject), **setting)
        return noise_curve(subject.risk, surveyed(subject), **setting)
    name = "total" if layer is None else layer.name
    return subject.remember(f"noise {name} {one_sided} {setting | {'layers': name}}", compute)


def groups(subject: Subject, per_layer: bool) -> dict[str, Layer | None]:
    """Names of readings and the layer that has the noise: each one, if asked, and `total` for all of them at once."""
    return {**({x.name: x for x in subject.layers} if per_layer else {}), "total": None}


@measure("noise-stability", index=("layer", "sigma", "term"), unit="loss", sharded={},
         source="Ju, Li & Zhang 2022, arXiv:2206.02659; measures.md 6")
def noise_stability(subject: Subject, *, sigmas: tuple[float, ...] = SIGMAS, per_layer: bool = False,
                    covariance: str = "isotropic", layer_sigmas: tuple[float, ...] = (), one_sided: bool = False,
                    rtol: float = RTOL, atol: float = 0.0, max_passes: int = MAX_PASSES,
                    seed: int = 0) -> dict[tuple[str, float, str], Estimate]:
    """I(sigma) = E L(W + U) - L(W) on the training data, U Gaussian with standard deviation sigma on selected weights.

    covariance: `isotropic`; `norm`, where sigma is relative to the root mean square of a layer's weights; `weight`,
    where it is relative to each weight's size. layer_sigmas: numbers that multiply sigma, one for each layer in
    execution order. per_layer: also with noise in one layer at a time. `perturbed-loss` is E L(W + U).

    Draws are antithetic pairs +-U, one U for all sigmas and a few examples, which are sampled by how much their losses
    may move. They end when every sigma has a relative standard error of `rtol`, an absolute one of `atol`, or when
    `max_passes` times the number of examples were drawn; n counts the U.

    one_sided: as the papers draw, +U only, another U for every sigma and the same for all the data, `max_passes` of
    them; `sd` is the standard deviation over these draws (ddof 1).
    """
    sigmas, spreads = grid(sigmas), Spreads(covariance, tuple(layer_sigmas))
    loss = surveyed(subject).losses.mean().item()
    result: dict[tuple[str, float, str], Estimate] = {}
    for name, layer in groups(subject, per_layer).items():
        drawn = curve(subject, layer, sigmas=sigmas, one_sided=one_sided, spreads=spreads, rtol=rtol, atol=atol,
                      max_passes=max_passes, seed=seed)
        for sigma, value in zip(sigmas, drawn.estimates(), strict=True):
            result[name, sigma, "stability"] = value
            result[name, sigma, "perturbed-loss"] = Estimate(loss + value.value, value.stderr, value.n)
            if one_sided:  # of a Gaussian sample's standard deviation, as good a guess of its error as any
                sd = value.stderr * math.sqrt(value.n)
                result[name, sigma, "sd"] = Estimate(sd, sd / math.sqrt(2 * (value.n - 1)), value.n)
    return result
