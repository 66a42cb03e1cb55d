"""Long & Sedghi 2020: bound by the number of parameters and the distance of convolutions as linear maps."""

from __future__ import annotations

import math

from genmeasure.bounds.assumptions import bounded_inputs, expressible, feed_forward
from genmeasure.bounds.layer_norms import check_no_dead_layer, layer_norms
from genmeasure.bounds.terms import ZERO_ONE, complexity, log_sum, logarithm, percentile_margin
from genmeasure.errors import unknown
from genmeasure.estimate import Estimate
from genmeasure.predictions import largest_input_norm
from genmeasure.registry import bound
from genmeasure.subject import Subject


def log_table(norms: list[float], distances: list[float], parameters: int, n: int) -> float:
    """ln sqrt( (W/n) P^2 sum_i (d_i / s_i)^2 ), d_i and s_i spectral norms; -inf where nothing moved."""
    ratios = log_sum(2 * (logarithm(d) - math.log(s)) for d, s in zip(distances, norms, strict=True))
    return 0.5 * (math.log(parameters) - math.log(n) + ratios) + sum(math.log(s) for s in norms)


def log_theorem(distances: list[float], excess: float, reach: float, margin: float, parameters: int, n: int) -> float:
    """ln sqrt( W (sum_i d_i + nu L + max(0, ln(chi / margin))) / n ), nu = `excess`, chi = `reach`, L layers."""
    inside = sum(distances) + excess * len(distances) + max(0.0, math.log(reach / margin))
    return 0.5 * (math.log(parameters) + logarithm(inside) - math.log(n))


@bound("long2020", index=("term",), unit=ZERO_ONE, needs={"theorem": ("classes", "input-norm"), "table": ()},
       kind={"theorem": "measure", "table": "reproduction"}, defined=expressible,
       source="arXiv:1905.12600, Theorem 3.1; table: Ju, Li & Zhang 2022 (reconstructed, bounds.md 2.1 c)",
       assumes=(feed_forward, bounded_inputs))
def long2020(subject: Subject, *, variant: str = "table", percentile: float = 0.1,
             input_norm: float | None = None) -> dict[str, Estimate]:
    """The number of parameters W times spectral distances from the start.

    variant `table`: sqrt((W/n) P^2 sum_i (d_i/s_i)^2), d_i and s_i the spectral norms of displacement and weight,
    reshaped kernels, P the product of the s_i. `theorem`: sqrt(W (sum_i d_i + nu L + max(0, ln(chi/margin))) / n) with
    the norms of linear maps, nu the most by which a start's norm exceeds 1, chi the largest input norm, L layers; its
    constant is unknown, so it is a measure, and infinite where the margin at `percentile` is not positive. W counts all
    parameters of the model. BatchNorm is folded. input_norm: chi, the largest training input's if None.
    """
    n, parameters = subject.train.size, sum(p.numel() for p in subject.model.parameters())
    if variant == "table":
        check_no_dead_layer(subject)
        norms, distances = (layer_norms(subject, of, "spectral") for of in ("weight", "displacement"))
        return complexity(log_table(norms, distances, parameters, n), n=n)
    if variant != "theorem":
        raise unknown("variant of long2020", variant, ["theorem", "table"])
    gamma, error = percentile_margin(subject, percentile)
    remarks = {"margin": gamma, "margin-error": error}
    if gamma <= 0:
        return complexity(math.inf, remarks=remarks, n=n)
    distances = layer_norms(subject, "displacement", "operator")
    excess = max(0.0, max(layer_norms(subject, "start", "operator")) - 1)
    reach = largest_input_norm(subject) if input_norm is None else float(input_norm)
    return complexity(log_theorem(distances, excess, reach, gamma, parameters, n), remarks=remarks, n=n)
