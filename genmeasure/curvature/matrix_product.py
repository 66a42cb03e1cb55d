"""Products of many rows with a weight, by the faster of the two libraries that torch brings for CPUs.

torch hands products in float32 to MKL, which takes a slower path on processors that are not Intel's: 105 GFLOP/s on
one core of an AMD EPYC (Zen 5) where oneDNN gets 240. torch reaches oneDNN's product only through an operator that its
compiler uses.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad


def _operator() -> torch._ops.OpOverload | None:
    try:
        return torch.ops.mkldnn._linear_pointwise.default if torch.backends.mkldnn.is_available() else None
    except AttributeError:  # a build of torch without it
        return None


ONE_DNN = _operator()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return ONE_DNN(input, weight, bias, "none", [], "")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _Linear.apply(slope, weight.T, None), None, None


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input [..., k] times weight' [o, k] plus bias [o], as `F.linear`: [..., o]; gradients as often as wanted.

    By oneDNN where all are plain float32 on a CPU and only the input has a gradient, else by `F.linear` itself.
    """
    if not _fits(input, weight, bias):
        return F.linear(input, weight, bias)
    return _Linear.apply(input, weight, None if bias is None else bias.contiguous())


def _fits(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if ONE_DNN is None or not torch.backends.mkldnn.enabled or torch.is_autocast_enabled("cpu"):
        return False
    if forward_ad._current_level >= 0:  # in forward mode
        return False
    given = [input, weight] if bias is None else [input, weight, bias]
    return (all(type(t) in (Tensor, nn.Parameter) and t.layout is torch.strided and t.device.type == "cpu"
                and t.dtype is torch.float32 and not torch._C._functorch.is_functorch_wrapped_tensor(t) for t in given)
            and not any(t.requires_grad for t in given[1:]) and input.ndim > 1 and weight.ndim == 2
            and weight.numel() > 0 and (bias is None or bias.shape == weight.shape[:1]))
