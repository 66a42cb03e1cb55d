"""genmeasure: why, and how well, does this fine-tuned checkpoint generalize?

    import genmeasure as gm
    subject = gm.subject(model, start, train, test)
    gm.measure(subject, "hessian-trace", rtol=0.01, seed=0)
    gm.audit(subject)
    gm.list()
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

import pandas as pd

from genmeasure import registry, study
from genmeasure.subject import Subject, subject

__all__ = ["audit", "list", "measure", "subject"]

logging.getLogger(__name__).addHandler(logging.NullHandler())


def measure(subject: Subject, name: str, **parameters: Any) -> pd.DataFrame:
    """The readings of one measure or bound, in the columns of readings.csv.

    Raises `InputError` for a name or parameter that does not exist, with the nearest one that does.
    """
    return study.read(subject, study.Request(name, parameters))


def audit(subject: Subject) -> pd.DataFrame:
    """The readings of every measure and bound that applies to the subject, with default parameters.

    One that fails is a row with `error` set.
    """
    requests = study.applicable(subject, study.everything())
    return pd.concat([study.attempt(subject, r) for r in requests], ignore_index=True)


def list() -> pd.DataFrame:
    """The catalogue: every measure, bound, algorithm, model family and kind of label noise, with its kind, parameters,
    source and summary."""
    return pd.DataFrame([{
        "family": m.family, "name": m.name, "summary": m.summary,
        "kind": m.kind if isinstance(m.kind, str) else ", ".join(f"{v}: {k}" for v, k in m.kind.items()),
        "index_columns": " ".join(m.index), "parameters": " ".join(
            k if v is inspect.Parameter.empty else f"{k}={v!r}" for k, v in m.defaults.items()),
        "assumes": " ".join(c.__name__ for c in m.assumes), "source": m.source}
        for family in (registry.measure, registry.bound, registry.algorithm, registry.model_family,
                       registry.label_noise) for m in family])
