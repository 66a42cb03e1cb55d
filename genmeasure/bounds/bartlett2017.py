"""Bartlett, Foster & Telgarsky 2017: spectrally normalised margin bound by covering numbers."""

from __future__ import annotations

import math

from genmeasure.bounds.assumptions import expressible, feed_forward
from genmeasure.bounds.layer_norms import check_no_dead_layer, layer_norms
from genmeasure.bounds.terms import ZERO_ONE, complexity, log_sum, logarithm, percentile_margin
from genmeasure.errors import unknown
from genmeasure.estimate import Estimate
from genmeasure.predictions import predictions
from genmeasure.registry import bound
from genmeasure.subject import Subject


def log_complexity(norms: list[float], distances: list[float]) -> float:
    """ln R_A = ln( prod_j s_j (sum_i (b_i / s_i)^(2/3))^(3/2) ), b_i in the (2,1) norm; -inf where all b_i are 0."""
    ratios = log_sum(2 / 3 * (logarithm(b) - math.log(s)) for b, s in zip(distances, norms, strict=True))
    return sum(math.log(s) for s in norms) + 1.5 * ratios


@bound("bartlett2017", index=("term",), unit=ZERO_ONE, needs=("classes", "input-norm"), defined=expressible,
       kind={"start": "measure", "zero": "measure"}, source="arXiv:1706.08498, Theorem 1.1", assumes=(feed_forward,))
def bartlett2017(subject: Subject, *, variant: str = "start", percentile: float = 0.1) -> dict[str, Estimate]:
    """|X|_F P (sum_i (|W_i - M_i|_(2,1) / s_i)^(2/3))^(3/2) / (margin n), without the theorem's ln(width).

    The (2,1) norm is the sum over output units of the Euclidean norm of the row; all norms are those of the linear
    maps, unrolled convolutions, BatchNorm folded. |X|_F is over all training inputs. variant: M_i is the `start` or
    `zero`. A measure: the theorem leaves its constant open. Infinite where the margin at `percentile` of the training
    margins is not positive.
    """
    of = {"start": "displacement", "zero": "weight"}
    if variant not in of:
        raise unknown("variant of bartlett2017", variant, of)
    check_no_dead_layer(subject)
    n = subject.train.size
    norms, distances = layer_norms(subject, "weight", "operator"), layer_norms(subject, of[variant], "unrolled-two-one")
    size = predictions(subject).input_norm.norm().item()
    log_total = log_complexity(norms, distances) + logarithm(size) - math.log(n)
    return complexity(log_total, margin=percentile_margin(subject, percentile), n=n)
