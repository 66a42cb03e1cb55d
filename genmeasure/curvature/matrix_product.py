"""Products of many rows with a weight, by the faster of the two libraries that torch brings for CPUs.

torch hands products in float32 to MKL, which takes a slower path on processors that are not Intel's: 105 GFLOP/s on
one core of an AMD EPYC (Zen 5) where oneDNN, which serves convolutions, gets 240. torch reaches oneDNN's product only
through an operator that its compiler uses.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _operator() -> torch._ops.OpOverload | None:
    try:
        return torch.ops.mkldnn._linear_pointwise.default if torch.backends.mkldnn.is_available() else None
    except AttributeError:  # a build of torch without it
        return None


ONE_DNN = _operator()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return ONE_DNN(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        return _Linear.apply(slope, ctx.weight.T, None), None, None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., k] times weight' [o, k] plus bias [o], as `F.linear`: [..., o]; gradients as often as wanted."""
    given = [x, weight] if bias is None else [x, weight, bias]
    plain = all(t.device.type == "cpu" and t.dtype is torch.float32 for t in given)
    moves = any(t.requires_grad for t in given[1:])
    if ONE_DNN is None or not torch.backends.mkldnn.enabled or not plain or moves or x.ndim < 2:
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)
