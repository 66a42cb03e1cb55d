"""Zhang, Li & Ju 2024: the bound by the Hessian's trace and the distance of the whole network."""

from __future__ import annotations

import math

from genmeasure.bounds.assumptions import bounded_loss, smooth
from genmeasure.bounds.ju2022_trace import CANDIDATES, PROBES, STEPS, contribution, positive_traces
from genmeasure.bounds.terms import laid_out, loss_bound
from genmeasure.errors import unknown
from genmeasure.estimate import Estimate
from genmeasure.measures.hessian_trace import LAYER_RTOL, MAX_PASSES, RTOL, traces
from genmeasure.norms import frobenius
from genmeasure.registry import bound
from genmeasure.subject import Subject


@bound("zhang2024", index=("term",), unit="loss", kind={"max": "measure", "mean": "measure"},
       assumes=(smooth, bounded_loss), source="arXiv:2306.08553, Theorem 2.1 (constants unconfirmed; bounds.md 3.8)")
def zhang2024(subject: Subject, *, variant: str = "mean", loss_upper: str | float = "max-sample", rtol: float = RTOL,
              layer_rtol: float = LAYER_RTOL, max_passes: int = MAX_PASSES, candidates: int = CANDIDATES,
              probes: int = PROBES, steps: int = STEPS, seed: int = 0) -> dict[str, Estimate]:
    """sqrt(C Tr r^2 / n), r the distance of all layers from the start.

    variant `mean`: Tr is the trace over all layers of the Hessian of the mean training loss, as `hessian-trace`
    measures it with rtol, layer_rtol and max_passes (zero for a negative one). `max`: Tr is the sum over layers of the
    largest Tr[H_ii+] of a training example, found as for `ju2022-trace` with candidates, probes and steps; at least
    `ju2022-trace` then. A measure: the theorem takes the maximum over all weights and examples and leaves a remainder
    of O(n^(-3/4)) open. loss_upper: C, a number, `range`, or the plug-in `max-sample`.
    """
    c, n = loss_bound(subject, loss_upper), subject.train.size
    distance = math.hypot(*(frobenius(subject.displacement(x)) for x in subject.layers))
    if variant == "mean":
        found = traces(subject, route="auto", rtol=rtol, layer_rtol=layer_rtol, atol=0.0, max_passes=max_passes,
                       seed=seed).estimate()
    elif variant == "max":
        each = list(positive_traces(subject, candidates=candidates, probes=probes, steps=steps, seed=seed).values())
        found = Estimate(sum(e.value for e in each), math.hypot(*(e.stderr for e in each)),
                         min(e.n for e in each))
    else:
        raise unknown("variant of zhang2024", variant, ["mean", "max"])
    return laid_out({"complexity": contribution(c, found, distance, n)}, trivial=c, remarks={"loss-bound": c}, n=n)
