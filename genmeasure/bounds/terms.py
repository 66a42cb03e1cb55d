"""How a bound's numbers are laid out: terms that add up to `total`, then remarks on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch

from genmeasure.errors import InputError
from genmeasure.estimate import Estimate
from genmeasure.predictions import predictions
from genmeasure.subject import Subject

REMARKS = ("total", "log10", "vacuous", "loss-bound", "margin", "margin-error", "factor", "kl", "bits", "choice-nats",
           "confidence-nats")
"""Terms that are not added up; `assumes:` terms, which the study adds, are not either."""

ZERO_ONE = {"log10": "", "vacuous": "", "margin": "output", "kl": "nats", "*-nats": "nats", "bits": "bits",
            "*": "fraction"}
"""Units of the terms of a bound on the 0-1 error."""


def laid_out(terms: Mapping[str, float | Estimate], *, log_total: float | None = None, trivial: float | None = None,
             remarks: Mapping[str, float] | None = None, n: int) -> dict[str, Estimate]:
    """Terms with their `total`, `log10` of it, and `vacuous`: 1 where the total is at least `trivial`.

    terms: numbers, which are exact, or independent estimates. log_total: natural logarithm of the total, where it was
    evaluated in logarithms and may not fit a float. n: examples, for what is exact.
    """
    given = {k: t if isinstance(t, Estimate) else Estimate(t, 0.0, n) for k, t in terms.items()}
    total = sum(t.value for t in given.values())
    stderr = math.sqrt(sum(t.stderr**2 for t in given.values()))
    drawn = min((t.n for t in given.values() if t.stderr > 0), default=n)
    log10 = log_total / math.log(10) if log_total is not None else math.log10(total) if total > 0 else -math.inf
    result = {**given, **{k: Estimate(v, 0.0, n) for k, v in (remarks or {}).items()},
              "total": Estimate(total, stderr, drawn)}
    if math.isfinite(log10):
        result["log10"] = Estimate(log10, stderr / (total * math.log(10)) if stderr > 0 else 0.0, drawn)
    if trivial is not None:
        result["vacuous"] = Estimate(float(total >= trivial), 0.0, n)
    return result


def complexity(log_total: float, *, n: int, margin: tuple[float, float] | None = None,
               remarks: dict[str, float] | None = None) -> dict[str, Estimate]:
    """A table form, one term evaluated in logarithms: `log_total` without the margin, -inf for zero.

    margin: what `percentile_margin` gives, by whose margin the form is divided; infinite where that is not positive,
    unless the form is zero.
    """
    remarks = dict(remarks or {})
    if margin is not None:
        gamma, error = margin
        remarks |= {"margin": gamma, "margin-error": error}
        if log_total > -math.inf:
            log_total = log_total - math.log(gamma) if gamma > 0 else math.inf
    return laid_out({"complexity": exponential(log_total)}, log_total=log_total, trivial=1.0, remarks=remarks, n=n)


def percentile_margin(subject: Subject, percentile: float) -> tuple[float, float]:
    """The margin at a quantile of the training margins, and the share of training examples with at most that margin."""
    found = predictions(subject)
    if not 0 <= percentile <= 1:
        raise InputError(f"percentile {percentile} came; it is a share of the examples, from 0 to 1")
    if found.margin is None:
        raise InputError(f"the loss {subject.loss.name!r} has no classes; margins need a classification loss")
    gamma = torch.quantile(found.margin, percentile).item()
    return gamma, (found.margin <= gamma).double().mean().item()


def check_delta(delta: float) -> None:
    """Raise `InputError` unless `delta` is a probability of failure."""
    if not 0 < delta < 1:
        raise InputError(f"delta {delta} came; it is the probability that the bound fails, between 0 and 1")


def logarithm(x: float) -> float:
    """ln, -inf for zero."""
    return math.log(x) if x > 0 else -math.inf


def log_sum(logs: Iterable[float]) -> float:
    """ln of the sum of the exponentials; -inf for none."""
    logs = list(logs)
    top = max(logs, default=-math.inf)
    return top if math.isinf(top) else top + math.log(math.fsum(math.exp(x - top) for x in logs))


def exponential(log: float) -> float:
    """exp, infinite instead of an overflow."""
    return math.exp(log) if log < 709 else math.inf


def loss_bound(subject: Subject, bound: str | float) -> float:
    """The C of a theorem that needs a loss in [0, C].

    bound: a number; `range` for the loss's own upper bound, refused where it has none; `max-sample` for the largest
    training loss of a single example, a plug-in that certifies nothing (measures.md 5).
    """
    if isinstance(bound, (int, float)):
        if bound <= 0:
            raise InputError(f"the loss bound {bound} came; it must be positive")
        return float(bound)
    if bound == "max-sample":
        return predictions(subject).loss.max().item()
    if bound != "range":
        raise InputError(f"the loss bound {bound!r} came; give a number, 'range' or 'max-sample'")
    if subject.loss.upper is None:
        raise InputError(f"the loss {subject.loss.name!r} is unbounded, so this bound does not hold for it; measure "
                         "with --loss clamped-cross-entropy, or take loss_upper=max-sample as a plug-in")
    return subject.loss.upper
