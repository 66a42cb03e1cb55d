"""Hessian traces per layer."""

from __future__ import annotations

from typing import Any

import torch

from genmeasure.curvature.trace import Traces, block_traces
from genmeasure.errors import second_derivative
from genmeasure.estimate import Estimate
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
                  atol: float = 0.0, max_passes: int = MAX_PASSES, seed: int = 0) -> dict[str, Estimate]:
    """Trace of the diagonal block H_ii of the mean training loss, per layer and in total.

    route: `gauss-newton` where the network is piecewise linear in each weight tensor, `split` (Gauss-Newton part plus
    sampled residual) for smooth ones, `hutchinson` for any; `auto` checks and chooses. Draws end when the total has a
    relative standard error of `rtol` and every layer one of `layer_rtol` (or both an absolute one of `atol`), or after
    `max_passes`.
    """
    found = traces(subject, route=route, rtol=rtol, layer_rtol=layer_rtol, atol=atol, max_passes=max_passes,
                   seed=seed)
    unit_vectors = torch.eye(len(subject.layers), dtype=torch.float64)
    result = {layer.name: found.estimate(e) for layer, e in zip(subject.layers, unit_vectors, strict=True)}
    return {**result, "total": found.estimate()}
