"""Norms of the fine-tuned weights."""

from __future__ import annotations

import math

from genmeasure.estimate import Estimate
from genmeasure.norms import NORMS
from genmeasure.registry import measure
from genmeasure.spectral import operator_norm, operator_norm_upper
from genmeasure.subject import Subject


@measure("norm", index=("layer", "term"), sharded={}, source="measures.md 0.3, 2, 4",
         unit=dict.fromkeys((*NORMS, "operator", "operator-upper"), "weight"))
def norm(subject: Subject, *, fold: bool = False) -> dict[tuple[str, str], Estimate]:
    """Norms of every layer's weight: Frobenius, spectral and MARS of the reshaped matrix, (2,1), and of the linear map.

    `operator` is the spectral norm of a convolution as the linear map that it is, to which an iteration converges from
    below; `operator-upper` is certainly not below it. fold: with the BatchNorm behind a layer folded in. Totals: the
    root of the sum of squared Frobenius norms, and log10 of the products over layers.
    """
    result: dict[tuple[str, str], Estimate] = {}
    for layer in subject.layers:
        weight = subject.weight(layer, fold=fold)
        for term, function in NORMS.items():
            result[layer.name, term] = Estimate(function(layer.matrix(weight)))
        result[layer.name, "operator"] = Estimate(operator_norm(layer, weight))
        result[layer.name, "operator-upper"] = Estimate(operator_norm_upper(layer, weight))
    layers = [layer.name for layer in subject.layers]
    result["total", "frobenius"] = Estimate(math.sqrt(sum(result[x, "frobenius"].value ** 2 for x in layers)))
    for term in ("spectral", "operator", "operator-upper", "mars"):
        logs = [math.log10(max(result[x, term].value, 1e-300)) for x in layers]
        result["total", f"log10-{term}-product"] = Estimate(sum(logs))
    return result
