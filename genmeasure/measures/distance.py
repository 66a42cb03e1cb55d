"""How far the weights travelled from the start."""

from __future__ import annotations

import math

from genmeasure.estimate import Estimate
from genmeasure.layers import batch_norm_scale
from genmeasure.norms import NORMS, frobenius
from genmeasure.registry import measure
from genmeasure.subject import Subject


@measure("distance", index=("layer", "term"), sharded={}, source="measures.md 3; Li & Zhang 2021, arXiv:2111.04578",
         unit={"frobenius": "weight", "spectral": "weight", "mars": "weight", "two-one": "weight", "l2": "weight",
               "max": "weight", "frobenius-about-zero": "weight", "batch-norm-scale": "weight"})
def distance(subject: Subject) -> dict[tuple[str, str], Estimate]:
    """Norms of W - W(start) for every layer: Frobenius, relative, spectral, MARS, (2,1).

    Layers are unfolded weights. Of the head, `frobenius-about-zero` is listed beside the distance from its start;
    where the start has no head of this shape both are the norm of the head. `batch-norm-scale` is
    max |s - s(start)|, s = gamma / sqrt(var + eps). Parameters that are no layer (biases, norm scales) are listed with
    `l2` and `max`. `total` is the root of the sum of squared Frobenius distances over layers.
    """
    result: dict[tuple[str, str], Estimate] = {}
    squares = 0.0
    for layer in subject.layers:
        moved, start = subject.displacement(layer), subject.start_weight(layer)
        for term, norm in NORMS.items():
            result[layer.name, term] = Estimate(norm(layer.matrix(moved)))
        length = result[layer.name, "frobenius"].value
        squares += length**2
        if frobenius(start) > 0:
            result[layer.name, "relative"] = Estimate(length / frobenius(start))
        if layer.head:
            result[layer.name, "frobenius-about-zero"] = Estimate(frobenius(subject.weight(layer)))
        now, before = (batch_norm_scale(layer, state, subject.model) for state in (subject.state, subject.start))
        if now is not None and before is not None:
            result[layer.name, "batch-norm-scale"] = Estimate((now - before).abs().max().item())
    selected = {path for layer in subject.layers for path in (layer.parameter, *layer.tied)}
    for name, _ in subject.model.named_parameters():
        if name not in selected and name in subject.start:
            moved = subject.state[name] - subject.start[name]
            result[name, "l2"] = Estimate(frobenius(moved))
            result[name, "max"] = Estimate(moved.abs().max().item())
    result["total", "frobenius"] = Estimate(math.sqrt(squares))
    return result
