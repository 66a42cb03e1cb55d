"""The least of several certificates, each of which holds with its share of delta."""

from __future__ import annotations

from genmeasure.bounds.assumptions import distinct_examples, independent_start
from genmeasure.bounds.lotfi2022 import lotfi2022
from genmeasure.bounds.pacbayes_kl import enough_examples, pacbayes_kl
from genmeasure.bounds.terms import ZERO_ONE, check_delta
from genmeasure.estimate import Estimate, Estimates
from genmeasure.measures.hessian_trace import MAX_PASSES
from genmeasure.registry import bound
from genmeasure.subject import Subject

CERTIFICATES = {"pacbayes-kl (layerwise)": lambda s, **given: pacbayes_kl(s, variant="layerwise", **given),
                "pacbayes-kl (isotropic)": lambda s, **given: pacbayes_kl(s, variant="isotropic", **given),
                "lotfi2022 (kl)": lambda s, **given: lotfi2022(
                    s, variant="kl", delta=given["delta"], start_saw_sample=given["start_saw_sample"])}


@bound("best-certificate", index=("term",), unit=ZERO_ONE, kind="certificate", needs=("classes",),
       defined=enough_examples,
       source="union bound over pacbayes-kl and lotfi2022", assumes=(independent_start, distinct_examples))
def best_certificate(subject: Subject, *, delta: float = 0.05, draws: int = 500, trace_max_passes: int = MAX_PASSES,
                     start_saw_sample: bool = False, seed: int = 0) -> dict[str, Estimate]:
    """The least of the certificates from training data, each taken with an equal share of delta.

    All of them hold at once with probability 1 - delta, so the least may be picked after looking. They speak of
    different classifiers: the reading says under `found` whose error it is. Terms: those of the certificate taken.
    """
    check_delta(delta)
    share = delta / len(CERTIFICATES)
    given = {"draws": draws, "trace_max_passes": trace_max_passes, "start_saw_sample": start_saw_sample, "seed": seed}
    found = {name: member(subject, delta=share, **given) for name, member in CERTIFICATES.items()}
    best = min(found, key=lambda name: found[name]["total"].value)
    taken = found[best]
    return Estimates(taken, **taken.found, certificate=best, share=share,
                     values={name: terms["total"].value for name, terms in found.items()})
