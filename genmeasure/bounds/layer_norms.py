"""Norms of every layer that norm bounds share: of the weights, the start and the displacement, each computed once."""

from __future__ import annotations

import math

from torch import Tensor

from genmeasure.errors import InputError
from genmeasure.layers import Layer
from genmeasure.norms import NORMS
from genmeasure.spectral import operator_norm_upper
from genmeasure.subject import Subject

OF = {"weight": Subject.weight, "start": Subject.start_weight, "displacement": Subject.displacement}


def layer_norms(subject: Subject, of: str, norm: str) -> list[float]:
    """The `norm` of the `weight`, the `start` or the `displacement` of every layer, BatchNorm folded in.

    A displacement is the difference of the two folded weights, each with its own statistics. norm: a name in
    `norms.NORMS`, of the reshaped matrix; `operator`, the certified upper side of the spectral norm of the linear map;
    `unrolled` and `unrolled-two-one`, at least the Frobenius and the (2,1) norm of the linear map's matrix.
    """
    def compute() -> list[float]:
        return [_norm(x, OF[of](subject, x, fold=True), norm) for x in subject.layers]
    return subject.remember(f"layer norms {of} {norm}", compute)


def _norm(layer: Layer, weight: Tensor, norm: str) -> float:
    if norm == "operator":
        return operator_norm_upper(layer, weight)
    positions = math.prod(layer.output_shape[1:]) if layer.convolution else 1
    if norm == "unrolled":
        return math.sqrt(positions) * NORMS["frobenius"](weight)
    if norm == "unrolled-two-one":
        return positions * NORMS["two-one"](layer.matrix(weight))
    return NORMS[norm](layer.matrix(weight))


def check_no_dead_layer(subject: Subject) -> None:
    """Raise `InputError` where all weights of a layer are zero, for bounds that divide by every layer's norm."""
    for layer, norm in zip(subject.layers, layer_norms(subject, "weight", "frobenius"), strict=True):
        if norm == 0:
            raise InputError(f"all weights of the layer {layer.name!r} are zero; this bound divides by every layer's "
                             "norm")
