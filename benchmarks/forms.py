"""v' H_ii v of every example and layer against double backward for each of them."""

from __future__ import annotations

from collections.abc import Iterator

import ours
import theirs
from harness import Row, Setting, interleaved, median_seconds
from networks import Case, piecewise_linear, smooth
from torch import Tensor
from traces import encoders

from genmeasure.risk import GRADIENT, HESSIAN_PRODUCT

DISAGREEMENT = 0.01
"""Forms that differ by more than this of a layer's largest are not the same quantity up to rounding."""


def forms_of_relu(setting: Setting) -> Iterator[Row]:
    yield from against_double_backward(piecewise_linear(setting.examples(2_048, 128), setting.device.type), setting)


def forms_of_encoder(setting: Setting) -> Iterator[Row]:
    for case in encoders(setting):
        yield from against_double_backward(Case(case.first(setting.examples(128, 64)), case.first(8)), setting)


def forms_of_smooth(setting: Setting) -> Iterator[Row]:
    for case in smooth(setting.examples(448, 256), setting.device.type):
        yield from against_double_backward(case, setting)


def against_double_backward(case: Case, setting: Setting) -> Iterator[Row]:
    """One row for a gradient and a product each for every example and layer, one for a gradient that serves all."""
    subject = case.subject
    count, layers = min(setting.of(24, 2), subject.train.size), len(subject.layers)
    directions = {layer.name: subject.displacement(layer) for layer in subject.layers}
    ours.forms(case.few)
    theirs.example_forms(case.few, directions, 1, each_layer=False)
    runs = interleaved({
        "ours": lambda _: ours.forms(subject),
        "each": lambda _: theirs.example_forms(subject, directions, count, each_layer=True),
        "shared": lambda _: theirs.example_forms(subject, directions, count, each_layer=False),
    }, setting.repeats, setting.device)
    found = runs["ours"][0].result.value
    for name, what, passes in (
            ("each", "double backward per example and layer", HESSIAN_PRODUCT * layers),
            ("shared", "double backward, one gradient per example", GRADIENT + (HESSIAN_PRODUCT - GRADIENT) * layers)):
        yield Row(f"per-example v'Hv of all layers, {case.label}, {what} / genmeasure", median_seconds(runs["ours"]),
                  median_seconds(runs[name]) / count * subject.train.size,
                  f"{equality(found, runs[name][0].result)}; theirs EXTRAPOLATED linearly from {count} examples",
                  ours.median_passes(runs["ours"]), passes)


def equality(found: Tensor, twin: Tensor) -> str:
    """How far forms [examples, layers] and those of the first few examples by double backward are apart."""
    twin = twin.detach().cpu().double()
    apart = ((found[:len(twin)].double() - twin).abs().amax(0) / found.double().abs().amax(0)).max().item()
    return (f"rounding of float32 (apart by {apart:.0e} of a layer's largest)" if apart <= DISAGREEMENT else
            f"NOT EQUAL: apart by {apart:.0e} of a layer's largest")
