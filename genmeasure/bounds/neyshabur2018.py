"""Neyshabur, Bhojanapalli & Srebro 2018: spectrally normalised margin bound."""

from __future__ import annotations

import math

from genmeasure.bounds.assumptions import bounded_inputs, expressible, feed_forward, known_modules
from genmeasure.bounds.layer_norms import check_no_dead_layer, layer_norms
from genmeasure.bounds.terms import (
    ZERO_ONE,
    complexity,
    exponential,
    laid_out,
    log_sum,
    logarithm,
    percentile_margin,
)
from genmeasure.errors import InputError, unknown
from genmeasure.estimate import Estimate
from genmeasure.predictions import largest_input_norm, predictions
from genmeasure.registry import bound
from genmeasure.subject import Subject

MARGIN_EXPONENTS = range(-20, 21)
"""The certificate tries every margin 2^j with these j and splits delta between them."""


def log_table(spectral_norms: list[float], ratios: list[float], margin: float, n: int) -> float:
    """ln sqrt( P^2 sum_i (F_i / s_i)^2 / (margin^2 n) ), P the product of the spectral norms."""
    product = sum(math.log(s) for s in spectral_norms)
    return product + 0.5 * math.log(sum(r**2 for r in ratios)) - math.log(margin) - 0.5 * math.log(n)


def log_divergence(spectral_norms: list[float], ratios: list[float], margin: float, input_norm: float, width: int,
                   log_beta: float) -> float:
    """ln( 42^2/2 d^2 B^2 h ln(4dh) betat^(2d-2) beta^2 sum_i (F_i / s_i)^2 / margin^2 ), betat = exp(log_beta)."""
    d = len(spectral_norms)
    log_product = sum(math.log(s) for s in spectral_norms)
    return (math.log(42**2 / 2) + 2 * math.log(d * input_norm / margin) + math.log(width * math.log(4 * d * width))
            + (2 * d - 2) * log_beta + 2 * log_product / d + math.log(sum(r**2 for r in ratios)))


def log_certified_complexity(log_kl: float, depth: int, m: int, delta: float) -> float:
    """ln( 4 sqrt( (KL + ln(6 d m^(1 + 1/2d) / delta)) / (m - 1) ) )."""
    confidence = math.log(6 * depth / delta) + (1 + 1 / (2 * depth)) * math.log(m)
    return math.log(4) + 0.5 * (log_sum([log_kl, math.log(confidence)]) - math.log(m - 1))


def grid_log_beta(log_beta: float, depth: int, margin: float, input_norm: float, m: int) -> float:
    """ln of the grid point that covers beta: spacing 2 lo / d over [lo, hi] = (margin/2B)^(1/d) [1, m^(1/2d)].

    Outside that range the bound is trivial or vacuous, and beta itself is returned.
    """
    low = math.log(margin / (2 * input_norm)) / depth
    high = low + math.log(m) / (2 * depth)
    if not low <= log_beta <= high:
        return log_beta
    spacing = 2 * math.exp(low) / depth
    step = round((math.exp(log_beta) - math.exp(low)) / spacing)
    return math.log(math.exp(low) + step * spacing)


@bound("neyshabur2018", index=("term",), unit=ZERO_ONE,
       needs={"theorem": ("classes", "input-norm"), "code": ("classes",), "table": ("classes",)},
       kind={"theorem": "certificate", "code": "measure", "table": "reproduction"},
       source="arXiv:1707.09564, Theorem 1; table: Ju, Li & Zhang 2022 (reconstructed)", defined=expressible,
       assumes=(feed_forward, known_modules, bounded_inputs))
def neyshabur2018(subject: Subject, *, variant: str = "theorem", delta: float = 0.05,
                  percentile: float = 0.1, input_norm: float | None = None) -> dict[str, Estimate]:
    """0-1 error of a plain ReLU network from its spectral norms, its Frobenius norms and a margin.

    variant `theorem`: margin loss plus 4 sqrt((KL + ln ...)/(m - 1)) with explicit constants, the best of a grid of
    margins that delta is split over; convolutions enter as the linear maps that they are, with their unrolled Frobenius
    norm. `table`: sqrt(P^2 sum F_i^2/s_i^2 / (margin^2 n)), reshaped kernels. `code`: the authors' public code,
    d (P/margin) sqrt(sum h_i D_i^2/s_i^2) / sqrt(n) with the distance D_i from the start. The last two take the margin
    at `percentile` of the training margins and are infinite where that is not positive. BatchNorm is folded, the
    start's with the start's statistics. delta: probability that the certificate fails. input_norm: a bound on the
    Euclidean norm of all inputs, fixed in advance; the largest on the sample, if None, certifies nothing.
    """
    found = predictions(subject)
    if not 0 < delta < 1 or not 0 <= percentile <= 1 or (input_norm is not None and input_norm <= 0):
        raise InputError(f"delta {delta}, percentile {percentile} and input_norm {input_norm} came; delta and "
                         "percentile are probabilities, and the input norm is positive")
    if found.margin is None:
        raise InputError(f"the loss {subject.loss.name!r} has no classes; margins need a classification loss")
    check_no_dead_layer(subject)
    n, d = subject.train.size, len(subject.layers)
    if n < 2:
        raise InputError(f"{n} training example came; this bound needs at least two")
    if variant == "theorem":
        norms = layer_norms(subject, "weight", "operator")
        ratios = [f / s for f, s in zip(layer_norms(subject, "weight", "unrolled"), norms, strict=True)]
        width = max(x.width for x in subject.layers)
        largest = largest_input_norm(subject)
        b = largest if input_norm is None else float(input_norm)
        if b < largest:
            raise InputError(f"input_norm {b} came, but a training input has the norm {largest:.6g}; give a bound that "
                             "holds for every input")
        log_beta = sum(math.log(s) for s in norms) / d

        def at(gamma: float) -> tuple[float, float, float, float]:
            log_kl = log_divergence(norms, ratios, gamma, b, width, grid_log_beta(log_beta, d, gamma, b, n))
            log_paid = log_certified_complexity(log_kl, d, n, delta / len(MARGIN_EXPONENTS))
            wrong = (found.margin <= gamma).double().mean().item()
            return log_sum([logarithm(wrong), log_paid]), wrong, log_paid, gamma
        log_total, wrong, log_paid, gamma = min(at(2.0**j) for j in MARGIN_EXPONENTS)
        return laid_out({"margin-loss": wrong, "complexity": exponential(log_paid)}, log_total=log_total, trivial=1.0,
                        remarks={"margin": gamma}, n=n)

    norms = layer_norms(subject, "weight", "spectral")
    if variant == "table":
        ratios, factor = [f / s for f, s in zip(layer_norms(subject, "weight", "frobenius"), norms, strict=True)], 1.0
    elif variant == "code":
        units = [math.sqrt(len(x.matrix(subject.weight(x)))) for x in subject.layers]
        distances = layer_norms(subject, "displacement", "frobenius")
        ratios = [u * f / s for u, f, s in zip(units, distances, norms, strict=True)]
        factor = float(d)
    else:
        raise unknown("variant of neyshabur2018", variant, ["theorem", "code", "table"])
    log_total = math.log(factor) + log_table(norms, ratios, 1.0, n) if any(ratios) else -math.inf
    return complexity(log_total, margin=percentile_margin(subject, percentile), n=n)
