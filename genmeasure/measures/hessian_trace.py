"""Hessian traces per layer."""

from __future__ import annotations

from typing import Any

import torch

from genmeasure.curvature.trace import Traces, block_traces
from genmeasure.errors import second_derivative
from genmeasure.estimate import Estimates
from genmeasure.registry import measure
from genmeasure.subject import Subject

RTOL, LAYER_RTOL, MAX_PASSES = 0.02, 0.1, 200


def traces(subject: Subject, **setting: Any) -> Traces:
    """`block_traces` with this setting, computed once per subject."""
    def compute() -> Traces:
        with second_derivative():
            return block_traces(subject.risk, **setting)
    return subject.remember(f"traces {setting}", compute)


@measure("hessian-trace", index=("layer",), unit="loss/weight²",
         source="Ju, Li & Zhang 2022, arXiv:2206.02659; measures.md 8")
def hessian_trace(subject: Subject, *, route: str = "auto", rtol: float = RTOL, layer_rtol: float = LAYER_RTOL,
                  atol: float = 0.0, max_passes: int = MAX_PASSES, seed: int = 0) -> Estimates:
    """Trace of the diagonal block H_ii of the mean training loss, per layer and in total.

    route: `gauss-newton` where the network is piecewise linear in each weight tensor (then H_ii = G_ii almost
    everywhere), `split` (Gauss-Newton part plus sampled residual) for smooth ones, `hutchinson` for any, `pyhessian` as
    that package draws; `auto` checks and chooses. Draws end when the total has a relative standard error of `rtol` and
    every layer one of `layer_rtol` (layers with less than a hundredth of the total: as one with a hundredth), or both
    an absolute one of `atol`, or after `max_passes` draws per example. The reading's parameters state under `found` the
    route taken and the number of layers in whose weights the outputs are piecewise linear. n counts the draws (the
    examples where nothing was drawn).
    Raises `InputError` for a route that the network or the loss does not allow, an operation without second derivative,
    and a NaN loss, with its batch.
    """
    setting = {"rtol": rtol, "layer_rtol": layer_rtol, "atol": atol, "max_passes": max_passes, "seed": seed}
    return by_layer(subject, traces(subject, route=route, **setting))


def by_layer(subject: Subject, found: Traces) -> Estimates:
    """The traces as estimates of every layer and the total."""
    unit_vectors = torch.eye(len(subject.layers), dtype=torch.float64)
    result = {layer.name: found.estimate(e) for layer, e in zip(subject.layers, unit_vectors, strict=True)}
    linear = {} if found.linear is None else {"piecewise-linear-layers": sum(found.linear)}
    return Estimates({**result, "total": found.estimate()}, route=found.route, layers=len(subject.layers), **linear)
