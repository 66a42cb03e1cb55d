"""Hessian traces per layer."""

from __future__ import annotations

from typing import Any

import torch

from genmeasure.curvature.forward import ForwardTraces, forward_traces
from genmeasure.curvature.trace import ROUTES, Traces, block_traces
from genmeasure.errors import InputError, second_derivative, unknown
from genmeasure.estimate import Estimates
from genmeasure.measures.noise_stability import surveyed
from genmeasure.registry import measure
from genmeasure.subject import Subject

RTOL, LAYER_RTOL, MAX_PASSES = 0.02, 0.1, 200
FORWARD_SIGMA = 0.01


def traces(subject: Subject, *, route: str, **setting: Any) -> Traces:
    """`block_traces`, or `forward_traces` for that route, with this setting, computed once per subject."""
    def compute() -> Traces:
        if route == "forward":
            return forward_traces(subject.risk, surveyed(subject), **setting)
        with second_derivative():
            return block_traces(subject.risk, route=route, **setting)
    return subject.remember(f"traces {route} {sorted(setting.items())}", compute)


@measure("hessian-trace", index=("layer",), unit="loss/weight²", sharded={"route": "forward"},
         source="Ju, Li & Zhang 2022, arXiv:2206.02659; measures.md 8")
def hessian_trace(subject: Subject, *, route: str = "auto", rtol: float = RTOL, layer_rtol: float = LAYER_RTOL,
                  atol: float = 0.0, max_passes: int = MAX_PASSES, forward_sigma: float = FORWARD_SIGMA,
                  seed: int = 0) -> Estimates:
    """Trace of the diagonal block H_ii of the mean training loss, per layer and in total.

    route: `gauss-newton` where the network is piecewise linear in each weight tensor (then H_ii = G_ii almost
    everywhere), `split` (Gauss-Newton part plus sampled residual) for smooth ones, `hutchinson` for any, `pyhessian` as
    that package draws; `auto` checks and chooses. `forward` needs no derivative at all, for models whose derivatives do
    not fit or do not exist: differences of the outputs along noise in one layer at a time, with a standard deviation of
    `forward_sigma` times the root mean square of the layer's weights, in a Gauss-Newton part and a residual; the second
    is left out where every operation is piecewise linear, since it would hold nothing but kinks. What three times that
    noise adds (in other networks with kinks the residual as well) is taken for a bound of the bias, shown under `found`
    beside the residual and part of the standard errors.

    Draws end when the total has a relative standard error of `rtol` and every layer one of `layer_rtol` (layers with
    less than a hundredth of the total: as one with a hundredth), or both an absolute one of `atol`, or after
    `max_passes` draws per example. The reading's parameters state under `found` the route taken and the number of
    layers in whose weights the outputs are piecewise linear, and how second derivatives were taken. n counts the draws
    (the examples where nothing was drawn).
    Raises `InputError` for a route that the network or the loss does not allow, an operation without second derivative,
    and a NaN loss, with its batch.
    """
    if route not in ("auto", *ROUTES, "forward"):
        raise unknown("route", route, ["auto", *ROUTES, "forward"])
    if not forward_sigma > 0:
        raise InputError(f"forward_sigma={forward_sigma:g} came; a standard deviation must be positive")
    setting = {"rtol": rtol, "layer_rtol": layer_rtol, "atol": atol, "max_passes": max_passes, "seed": seed}
    if route == "forward":
        setting["sigma"] = forward_sigma
    return by_layer(subject, traces(subject, route=route, **setting))


def by_layer(subject: Subject, found: Traces) -> Estimates:
    """The traces as estimates of every layer and the total."""
    unit_vectors = torch.eye(len(subject.layers), dtype=torch.float64)
    result = {layer.name: found.estimate(e) for layer, e in zip(subject.layers, unit_vectors, strict=True)}
    facts: dict[str, Any] = {} if found.linear is None else {"piecewise-linear-layers": sum(found.linear)}
    if found.tangents is not None:
        facts["second-derivatives"] = "tangents" if found.tangents else "double backward"
    if isinstance(found, ForwardTraces):
        facts["piecewise-linear"] = found.structure.linear
        for what, each in (("bias", found.bias), ("residual", found.residual)):
            facts[what] = dict(zip([*result, "total"], [*each.tolist(), each.sum().item()], strict=True))
    return Estimates({**result, "total": found.estimate()}, route=found.route, layers=len(subject.layers), **facts)
