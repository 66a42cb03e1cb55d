"""Gouk, Hospedales & Pontil 2021: distance-based bounds by maximum absolute row sums or by Frobenius norms."""

from __future__ import annotations

import math

from genmeasure.bounds.assumptions import bounded_inputs, expressible, feed_forward
from genmeasure.bounds.layer_norms import check_no_dead_layer, layer_norms
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

FROBENIUS_CONSTANT = 4 * math.sqrt(2)
"""C_F: 2 sqrt 2 by the derivation and by public code, 4 sqrt 2 in the paper as remembered; the safe one is taken."""


def log_mars(norms: list[float], distances: list[float]) -> float:
    """ln( prod_j (2 B_j) sum_i D_i / B_i ); -inf where nothing moved."""
    ratios = log_sum(logarithm(d) - math.log(b) for d, b in zip(distances, norms, strict=True))
    return ratios + sum(math.log(2 * b) for b in norms)


def log_frobenius(norms: list[float], distances: list[float], sizes: list[int]) -> float:
    """ln( prod_j (2 B_j sqrt(n_j)) sum_j D_j / (B_j prod_{i<=j} sqrt(n_i)) ), n_j the inputs of layer j."""
    below, parts = 0.0, []
    for d, b, size in zip(distances, norms, sizes, strict=True):
        below += 0.5 * math.log(size)
        parts.append(logarithm(d) - math.log(b) - below)
    return log_sum(parts) + sum(math.log(2 * b) for b in norms) + below


def inputs_of(layer: Layer) -> int:
    """The number of inputs of the layer's linear map."""
    weight = layer.module.get_parameter(layer.parameter.rsplit(".", 1)[-1])
    return math.prod(layer.input_shape) if layer.convolution else layer.matrix(weight).shape[1]


def largest_entry(subject: Subject) -> float:
    """max over training inputs of the largest absolute entry."""
    return max(t.abs().max().item() for b in subject.train for t in b.input_tensors() if t.is_floating_point())


@bound("gouk2021", index=("term",), unit=ZERO_ONE, needs={"table": (), "mars": ("classes", "input-norm"),
                                           "frobenius": ("classes", "input-norm")},
       kind={"table": "reproduction", "mars": "measure", "frobenius": "measure"}, defined=expressible,
       source="arXiv:2002.08253, Theorems 1 and 2; table: Ju, Li & Zhang 2022 (reconstructed, bounds.md 2.1 a)",
       assumes=(feed_forward, bounded_inputs))
def gouk2021(subject: Subject, *, variant: str = "table", percentile: float = 0.1, delta: float = 0.05,
             input_norm: float | None = None) -> dict[str, Estimate]:
    """Products of doubled layer norms times relative distances from the start.

    MARS is the maximum absolute row sum. variant `table`: n^(-1/2) prod_j 2 MARS(W_j) sum_i MARS(W_i - W_i(start)) /
    MARS(W_i). `mars`: margin loss + 4 sqrt(ln(2 d)) c X (the same without n) / (margin sqrt n) + 3 sqrt(ln(2/delta) /
    2n) for inputs of d entries below X in size and c classes. `frobenius`: with prod_j (2 F_j sqrt(n_j)) sum_j D_j /
    (F_j prod_{i<=j} sqrt(n_i)), constant 4 sqrt 2 and Euclidean input norms, for unrolled convolutions of n_j inputs.
    Measures: constants could not be confirmed, and the trained norms and the margin at `percentile` are not paid for;
    infinite where that margin is not positive. BatchNorm is folded. input_norm: X, the training inputs' if None.
    """
    check_delta(delta)
    check_no_dead_layer(subject)
    n = subject.train.size
    if variant == "table":
        norms, distances = (layer_norms(subject, of, "mars") for of in ("weight", "displacement"))
        return complexity(log_mars(norms, distances) - 0.5 * math.log(n), n=n)
    if variant not in ("mars", "frobenius"):
        raise unknown("variant of gouk2021", variant, ["table", "mars", "frobenius"])
    gamma, error = percentile_margin(subject, percentile)
    norm = "mars" if variant == "mars" else "unrolled"
    norms, distances = (layer_norms(subject, of, norm) for of in ("weight", "displacement"))
    sizes = [inputs_of(x) for x in subject.layers]
    largest = largest_entry if variant == "mars" else largest_input_norm
    reach = largest(subject) if input_norm is None else float(input_norm)
    if variant == "mars":
        entries = max(sum(t[0].numel() for t in b.input_tensors()) for b in subject.train)
        log_constant, log_norms = math.log(4) + 0.5 * math.log(math.log(2 * entries)), log_mars(norms, distances)
    else:
        log_constant, log_norms = math.log(FROBENIUS_CONSTANT), log_frobenius(norms, distances, sizes)
    log_paid = (log_constant + math.log(subject.classes * reach) + log_norms - 0.5 * math.log(n) - math.log(gamma)
                if gamma > 0 else math.inf)
    confidence = 3 * math.sqrt(math.log(2 / delta) / (2 * n))
    terms = {"margin-loss": error, "complexity": exponential(log_paid), "confidence": confidence}
    return laid_out(terms, trivial=1.0, remarks={"margin": gamma, "margin-error": error}, n=n,
                    log_total=log_sum([logarithm(error), log_paid, math.log(confidence)]))
