"""Bounds from test data alone: what a certificate from training data competes with."""

from __future__ import annotations

import math

from genmeasure.bounds.assumptions import unused_test_data
from genmeasure.bounds.inversions import bernstein, binomial_upper, hoeffding, kl_inverse
from genmeasure.bounds.terms import ZERO_ONE, check_delta, laid_out
from genmeasure.errors import InputError, unknown
from genmeasure.estimate import Estimate, Estimates
from genmeasure.predictions import predictions
from genmeasure.registry import bound
from genmeasure.subject import Subject

BOUNDS = {"binomial": lambda wrong, n, delta: binomial_upper(wrong, n, delta),
          "bernstein": lambda wrong, n, delta: bernstein(wrong / n, n, delta),
          "chernoff": lambda wrong, n, delta: kl_inverse(wrong / n, math.log(1 / delta) / n),
          "hoeffding": lambda wrong, n, delta: hoeffding(wrong / n, n, delta)}


@bound("hold-out", index=("term",), unit=ZERO_ONE, needs=("classes", "test"), kind=dict.fromkeys(BOUNDS, "certificate"),
       source="Clopper & Pearson 1934; Maurer & Pontil 2009, arXiv:0907.3740; bounds.md 3.11 (h)",
       assumes=(unused_test_data,))
def hold_out(subject: Subject, *, variant: str = "binomial", delta: float = 0.05,
             test_was_used: bool = False) -> dict[str, Estimate]:
    """0-1 error of the fine-tuned network itself from its errors on test data; holds with probability 1 - delta.

    variant `binomial`: exact inversion of the binomial tail; `chernoff`: by the binary kl; `bernstein`: from the
    sample's variance; `hoeffding`: the simplest. Terms: the test error and `confidence`. The test data must have taken
    no part in training or in choosing the checkpoint: say test_was_used=True where they have.
    """
    check_delta(delta)
    if variant not in BOUNDS:
        raise unknown("variant of hold-out", variant, BOUNDS)
    found = predictions(subject, "test")
    if found.error is None or not subject.loss.classification:
        raise InputError(f"the loss {subject.loss.name!r} has no classes; this bound needs a classification loss")
    n, wrong = len(found.error), round(found.error.sum().item())
    if n < 2:
        raise InputError(f"{n} test example came; this bound needs at least two")
    total = BOUNDS[variant](wrong, n, delta)
    return Estimates(laid_out({"test-error": wrong / n, "confidence": total - wrong / n}, trivial=1.0, n=n),
                     classifier="the fine-tuned network")
