"""Ju, Li & Zhang 2022: the Hessian-based generalization bound."""

from __future__ import annotations

import math

from genmeasure.bounds.assumptions import bounded_loss, smooth
from genmeasure.bounds.terms import laid_out, loss_bound
from genmeasure.estimate import Estimate
from genmeasure.measures.hessian_distance import RTOL, STEPS, layer_forms
from genmeasure.registry import bound
from genmeasure.subject import Subject


def contribution(loss_upper: float, form: float, n: int) -> float:
    """sqrt(C Hq_i / n) of one layer."""
    return math.sqrt(loss_upper * max(form, 0.0) / n)


@bound("ju2022", index=("term",), kind="measure", unit="loss", assumes=(smooth, bounded_loss),
       source="arXiv:2206.02659, Theorem 2.1, without its factor 1 + epsilon and its O(n^(-3/4))")
def ju2022(subject: Subject, *, loss_upper: str | float = "max-sample", steps: int = STEPS,
           rtol: float = RTOL) -> dict[str, Estimate]:
    """sqrt(C/n) sum_i sqrt(max over training examples of v_i' H_ii+ v_i), v_i the displacement of layer i.

    A measure: the theorem leaves the size of its O(n^(-3/4)) open, takes the maximum over the population, and its prior
    covariance depends on v. One term per layer. loss_upper: C, a number, `range`, or the plug-in `max-sample`. steps,
    rtol: see `hessian-distance`.
    """
    c, n = loss_bound(subject, loss_upper), subject.train.size
    forms = layer_forms(subject, steps=steps, rtol=rtol)
    terms = {name: contribution(c, f.positive_max, n) for name, f in forms.items()}
    return laid_out(terms, trivial=c, remarks={"loss-bound": c}, n=n)
