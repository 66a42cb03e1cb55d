"""Gauss-Newton traces per layer."""

from __future__ import annotations

from genmeasure.estimate import Estimates
from genmeasure.measures.hessian_trace import LAYER_RTOL, MAX_PASSES, RTOL, by_layer, traces
from genmeasure.registry import measure
from genmeasure.subject import Subject


@measure("gauss-newton-trace", index=("layer",), unit="loss/weight²", source="Martens 2020, arXiv:1412.1193, section 8")
def gauss_newton_trace(subject: Subject, *, rtol: float = RTOL, layer_rtol: float = LAYER_RTOL, atol: float = 0.0,
                       max_passes: int = MAX_PASSES, seed: int = 0) -> Estimates:
    """Trace of the diagonal block G_ii of the Gauss-Newton matrix of the mean training loss, per layer and in total.

    G_ii = J_i' A J_i with A the Hessian of the loss in the outputs: the Hessian without the second derivatives of the
    network. For cross-entropies it is the Fisher information. From the same draws as `hessian-trace`, without its
    residual; equal to it where the network is piecewise linear in each weight tensor. Stops as `hessian-trace`.
    Raises `InputError` for losses whose output Hessian is too large to decompose.
    """
    return by_layer(subject, traces(subject, route="auto", gauss_newton=True, rtol=rtol, layer_rtol=layer_rtol,
                                    atol=atol, max_passes=max_passes, seed=seed))
