"""How a bound's numbers are laid out: terms that add up to `total`, then remarks on it."""

from __future__ import annotations

import math

from genmeasure.errors import InputError
from genmeasure.estimate import Estimate
from genmeasure.predictions import predictions
from genmeasure.subject import Subject

REMARKS = ("total", "log10", "vacuous", "loss-bound", "margin")
"""Terms that are not added up; `assumes:` terms, which the study adds, are not either."""


def laid_out(terms: dict[str, float], *, log_total: float | None = None, trivial: float | None = None,
             remarks: dict[str, float] | None = None, n: int) -> dict[str, Estimate]:
    """Exact terms with their `total`, `log10` of it, and `vacuous`: 1 where the total is at least `trivial`.

    log_total: natural logarithm of the total, where it was evaluated in logarithms and may not fit a float.
    """
    total = sum(terms.values())
    log10 = log_total / math.log(10) if log_total is not None else math.log10(total) if total > 0 else -math.inf
    result = {**terms, **(remarks or {}), "total": total}
    if math.isfinite(log10):
        result["log10"] = log10
    if trivial is not None:
        result["vacuous"] = float(total >= trivial)
    return {k: Estimate(v, 0.0, n) for k, v in result.items()}


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
