"""Pitas, Davies & Vandergheynst 2017: PAC-Bayes margin bound about the start, with sharper noise of convolutions."""

from __future__ import annotations

import math

from genmeasure.bounds.assumptions import bounded_inputs, expressible, feed_forward, known_modules
from genmeasure.bounds.layer_norms import check_no_dead_layer, layer_norms
from genmeasure.bounds.neyshabur2018 import log_table
from genmeasure.bounds.terms import (
    ZERO_ONE,
    check_delta,
    complexity,
    exponential,
    laid_out,
    log_sum,
    logarithm,
    percentile_margin,
)
from genmeasure.errors import unknown
from genmeasure.estimate import Estimate
from genmeasure.layers import Layer
from genmeasure.predictions import largest_input_norm
from genmeasure.registry import bound
from genmeasure.subject import Subject

CONVOLUTION_NOISE = 1.4
"""Of the authors' public code: E ||op(U)|| <= 1.4 sigma k (sqrt a + sqrt b) for a k x k kernel, fitted, not proven."""


def noise_norm(layer: Layer) -> float:
    """The spectral norm of unit Gaussian noise on a layer's weight: of a kernel as above, else sqrt(in) + sqrt(out)."""
    out, rest = layer.matrix(layer.module.get_parameter(layer.parameter.rsplit(".", 1)[-1])).shape
    if not layer.convolution:
        return math.sqrt(rest) + math.sqrt(out)
    support = math.prod(layer.module.kernel_size)
    return CONVOLUTION_NOISE * math.sqrt(support) * (math.sqrt(rest / support) + math.sqrt(out))


def log_divergence(norms: list[float], distances: list[float], noise: list[float], margin: float,
                   input_norm: float) -> float:
    """ln( 8 e^4 B^2 (sum_i rho_i)^2 P^2 sum_i (D_i/s_i)^2 / margin^2 ), rho_i the norm of unit noise."""
    product = sum(math.log(s) for s in norms)
    ratios = log_sum(2 * (logarithm(d) - math.log(s)) for d, s in zip(distances, norms, strict=True))
    return math.log(8) + 4 + 2 * (math.log(input_norm * sum(noise) / margin) + product) + ratios


@bound("pitas2017", index=("term",), unit=ZERO_ONE, needs={"theorem": ("classes", "input-norm"), "table": ("classes",)},
       kind={"theorem": "measure", "table": "reproduction"}, defined=expressible,
       source="arXiv:1801.00171; table: Ju, Li & Zhang 2022 (reconstructed, bounds.md 2.1 f)",
       assumes=(feed_forward, known_modules, bounded_inputs))
def pitas2017(subject: Subject, *, variant: str = "table", percentile: float = 0.1, delta: float = 0.05,
              input_norm: float | None = None) -> dict[str, Estimate]:
    """0-1 error from the layers' distances D_i from the start, their spectral norms s_i and a margin.

    variant `table`: sqrt(P^2 sum D_i^2/s_i^2 / (margin^2 n)), P the product of the s_i, reshaped kernels. `theorem`:
    margin loss + 4 sqrt((KL + ln(6n/delta)) / (n - 1)) with KL = 8 e^4 B^2 (sum_i rho_i)^2 P^2 sum_i (D_i^2/s_i^2) /
    margin^2 (bounds.md 3.1), s_i of linear maps and D_i of the kernels, on which the noise lives. A measure: the
    constant of the convolutions' rho_i is fitted, the margin is not paid for, and a prior at the start with layers
    rescaled by the trained s_i depends on the sample. Both are infinite where the margin at `percentile` of the
    training margins is not positive. input_norm: B, the largest training input's if None.
    """
    check_delta(delta)
    check_no_dead_layer(subject)
    margin, n = percentile_margin(subject, percentile), subject.train.size
    distances = layer_norms(subject, "displacement", "frobenius")
    if variant == "table":
        norms = layer_norms(subject, "weight", "spectral")
        ratios = [d / s for d, s in zip(distances, norms, strict=True)]
        return complexity(log_table(norms, ratios, 1.0, n) if any(ratios) else -math.inf, margin=margin, n=n)
    if variant != "theorem":
        raise unknown("variant of pitas2017", variant, ["theorem", "table"])
    gamma, error = margin
    remarks = {"margin": gamma, "margin-error": error}
    if gamma <= 0:
        return laid_out({"margin-loss": error, "complexity": math.inf}, trivial=1.0, remarks=remarks, n=n)
    reach = largest_input_norm(subject) if input_norm is None else float(input_norm)
    log_kl = log_divergence(layer_norms(subject, "weight", "operator"), distances,
                            [noise_norm(x) for x in subject.layers], gamma, reach)
    log_paid = log_sum([log_kl, math.log(math.log(6 * n / delta))])
    log_complexity = math.log(4) + 0.5 * (log_paid - math.log(max(1, n - 1)))
    return laid_out({"margin-loss": error, "complexity": exponential(log_complexity)}, trivial=1.0, remarks=remarks,
                    log_total=log_sum([logarithm(error), log_complexity]), n=n)
