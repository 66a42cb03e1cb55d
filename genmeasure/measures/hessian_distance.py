"""Hessian forms along the displacement, example by example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from genmeasure.curvature.forms import hessian_forms, positive_forms
from genmeasure.curvature.gauss_newton import convex_in_outputs, gauss_newton_forms, linear_layers
from genmeasure.curvature.tangents import find_tangents
from genmeasure.curvature.taps import find_taps
from genmeasure.errors import second_derivative
from genmeasure.estimate import Estimate, Estimates
from genmeasure.registry import measure
from genmeasure.risk import Risk
from genmeasure.subject import Subject

STEPS, RTOL = 23, 0.02

TERMS = ("vHv-mean", "vHv-min", "vHv-max", "vGv-mean", "vGv-max", "vH+v-max", "vH+v-max-error")


@dataclass(frozen=True)
class Forms:
    """v' H_ii v and v' G_ii v of every example [examples], the largest v' H_ii+ v and the width of its bracket.

    derivatives: how the former was found where it is not the latter, for the reading.
    """

    hessian: Tensor
    gauss_newton: Tensor
    positive_max: float
    error: float
    derivatives: str = ""


def layer_forms(subject: Subject, *, steps: int, rtol: float) -> dict[str, Forms]:
    """The forms of every layer along its displacement, computed once per subject and setting."""
    return subject.remember(f"forms {steps} {rtol}", lambda: _layer_forms(subject, steps, rtol))


def _layer_forms(subject: Subject, steps: int, rtol: float) -> dict[str, Forms]:
    moves = {layer.name: subject.displacement(layer) for layer in subject.layers}
    still = [name for name, v in moves.items() if not v.any()]
    zeros = torch.zeros(subject.train.size, dtype=torch.float64)
    if still:  # only layers that moved are differentiated
        layers = [x for x in subject.layers if x.name not in still]
        some = {x.name: moves[x.name] for x in layers}
        result = _forms(subject.risk.restricted(layers), some, steps, rtol) if some else {}
        return {name: result.get(name, Forms(zeros, zeros, 0.0, 0.0)) for name in moves}
    return _forms(subject.risk, moves, steps, rtol)


def _forms(risk: Risk, moves: Mapping[str, Tensor], steps: int, rtol: float) -> dict[str, Forms]:
    with second_derivative():
        taps, convex = find_taps(risk) if risk.twice_differentiable else None, convex_in_outputs(risk)
        linear = dict(zip(moves, linear_layers(risk, taps), strict=True))
        curved = {name: v for name, v in moves.items() if not (linear[name] and convex)}
        gauss_newton = dict(zip(moves, gauss_newton_forms(risk, moves, taps).double().T, strict=True))
        hessian = dict(zip(curved, hessian_forms(risk, curved, taps).double().T, strict=True)) if curved else {}
        derivatives = "forward mode" if taps is None else "tangents" if find_tangents(risk, taps) else "double backward"
        result = {}
        for layer in risk.layers:
            name = layer.name
            if name not in curved:  # then H_ii = G_ii = H_ii+
                form = gauss_newton[name]
                result[name] = Forms(form, form, form.max().item(), 0.0)
                continue
            positive = positive_forms(risk, layer, moves[name], steps=steps, rtol=rtol, taps=taps)
            result[name] = Forms(hessian[name], gauss_newton[name], positive.value.max().item(),
                                 positive.upper.max().item() - positive.lower.max().item(), derivatives)
    return result


@measure("hessian-distance", index=("layer", "term"), unit=dict.fromkeys(TERMS, "loss"),
         source="Ju, Li & Zhang 2022, arXiv:2206.02659, Theorem 2.1; measures.md 9")
def hessian_distance(subject: Subject, *, steps: int = STEPS, rtol: float = RTOL) -> Estimates:
    """v_i' H_ii v_i of single training examples along the displacement v_i = W_i - W_i(start), per layer.

    H_ii is the diagonal block of one example's loss, so nothing depends on the batch size. `vGv` takes the Gauss-Newton
    block, `vH+v` the positive part. The first two agree for networks that are piecewise linear in each weight tensor,
    all three if the loss is also convex in the outputs.
    The maximum is exact over the examples scanned, whose number is n; it grows with that number.
    `vH+v-max-error` is the width of a bracket that holds the maximum, which Lanczos narrows until it is below `rtol`
    relative or for at most `steps` products (0: exact up to rounding).
    Totals are sums over layers. Where H_ii is not G_ii, the reading's parameters state under `found` how second
    derivatives were taken: `tangents` of all layers carried through each operation, `double backward` for each layer
    where some operation does not allow that, or nested `forward mode` where weights are not used linearly.
    """
    result: dict[tuple[str, str], Estimate] = {}
    totals = torch.zeros(len(TERMS), dtype=torch.float64)
    found = layer_forms(subject, steps=steps, rtol=rtol)
    for name, forms in found.items():
        values = (forms.hessian.mean(), forms.hessian.min(), forms.hessian.max(), forms.gauss_newton.mean(),
                  forms.gauss_newton.max(), forms.positive_max, forms.error)
        values = torch.tensor([float(v) for v in values], dtype=torch.float64)
        totals += values
        for term, value in zip(TERMS, values.tolist(), strict=True):
            result[name, term] = Estimate(value, 0.0, subject.train.size)
    for term, value in zip(TERMS, totals.tolist(), strict=True):
        result["total", term] = Estimate(value, 0.0, subject.train.size)
    ways = {forms.derivatives for forms in found.values()} - {""}
    return Estimates(result, **({"second-derivatives": " ".join(ways)} if ways else {}))
