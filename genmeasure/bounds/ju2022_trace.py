"""Ju, Li & Zhang 2022: the Hessian-based bound for distances alone, with traces in place of quadratic forms."""

from __future__ import annotations

import math

from genmeasure.bounds.assumptions import bounded_loss, smooth
from genmeasure.bounds.terms import laid_out, loss_bound
from genmeasure.curvature.example_traces import largest_positive_traces
from genmeasure.errors import second_derivative
from genmeasure.estimate import Estimate
from genmeasure.norms import frobenius
from genmeasure.registry import bound
from genmeasure.subject import Subject

CANDIDATES, PROBES, STEPS = 6, 16, 10


def positive_traces(subject: Subject, **setting: int) -> dict[str, Estimate]:
    """`largest_positive_traces` with this setting, computed once per subject."""
    def compute() -> dict[str, Estimate]:
        with second_derivative():
            return largest_positive_traces(subject.risk, **setting)
    return subject.remember(f"largest positive traces {setting}", compute)


def contribution(loss_upper: float, trace: Estimate, distance: float, n: int, factor: float = 1.0) -> Estimate:
    """sqrt(factor C Tr |v|^2 / n) of one layer, its standard error to first order."""
    scale = math.sqrt(factor * loss_upper / n) * distance
    root = math.sqrt(max(trace.value, 0.0))
    return Estimate(scale * root, scale * trace.stderr / (2 * root) if root > 0 else 0.0, trace.n)


@bound("ju2022-trace", index=("term",), kind="measure", unit="loss", assumes=(smooth, bounded_loss),
       source="arXiv:2206.02659, the corollary of Theorem 2.1 for distances; bounds.md 3.7")
def ju2022_trace(subject: Subject, *, loss_upper: str | float = "max-sample", candidates: int = CANDIDATES,
                 probes: int = PROBES, steps: int = STEPS, seed: int = 0) -> dict[str, Estimate]:
    """sqrt(C/n) sum_i sqrt(max over training examples of Tr[H_ii+] |v_i|^2), v_i the displacement of layer i.

    At least `ju2022`, by what v_i' H_ii+ v_i falls short of |v_i|^2 Tr[H_ii+]; a measure for the same reasons. One term
    per layer. Exact where the outputs are piecewise linear in a layer's weights and the loss is convex; elsewhere
    `probes` probes of `steps` Lanczos steps, on that of `candidates` examples where it is largest. loss_upper: C, a
    number, `range`, or the plug-in `max-sample`.
    """
    c, n = loss_bound(subject, loss_upper), subject.train.size
    found = positive_traces(subject, candidates=candidates, probes=probes, steps=steps, seed=seed)
    terms = {x.name: contribution(c, found[x.name], frobenius(subject.displacement(x)), n) for x in subject.layers}
    return laid_out(terms, trivial=c, remarks={"loss-bound": c}, n=n)
