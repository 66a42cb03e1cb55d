"""Margins of the training examples."""

from __future__ import annotations

import torch

from genmeasure.errors import InputError
from genmeasure.estimate import Estimate
from genmeasure.predictions import predictions
from genmeasure.registry import measure
from genmeasure.subject import Subject

QUANTILES = {"minimum": 0.0, "percentile-1": 0.01, "percentile-5": 0.05, "percentile-10": 0.1, "median": 0.5}


@measure("margin", index=("term",), needs=("classes",), sharded={}, source="measures.md 5",
         unit={**dict.fromkeys((*QUANTILES, "mean"), "output"), "fraction-nonpositive": "fraction"})
def margin(subject: Subject) -> dict[str, Estimate]:
    """Quantiles of f(x)_y - max_{j != y} f(x)_j over the training set, on raw outputs and given labels."""
    values = predictions(subject).margin
    if values is None:
        raise InputError(f"the loss {subject.loss.name!r} has no classes; margins need a classification loss")
    n = len(values)
    result = {term: Estimate(torch.quantile(values, q).item(), 0.0, n) for term, q in QUANTILES.items()}
    result["mean"] = Estimate(values.mean().item(), 0.0, n)
    result["fraction-nonpositive"] = Estimate((values <= 0).double().mean().item(), 0.0, n)
    return result
