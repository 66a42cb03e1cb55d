"""Products of many rows with a weight, by the faster of the two libraries that torch brings for CPUs.

torch hands products in float32 to MKL, which takes a slower path on processors that are not Intel's: 105 GFLOP/s on
one core of an AMD EPYC (Zen 5) where oneDNN gets 240. torch reaches oneDNN's product only through an operator that its
compiler uses.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

LEAST, NARROW = 2**21, 16
"""Multiplications, and rows and columns of the weight, from which on oneDNN takes less time."""
BLOCKS, MULTIPLE = tuple(2**i for i in range(13, 4, -1)), 128
"""Rows that are taken at a time, and what a number of rows that is summed over must be a multiple of. For every number
that it meets oneDNN keeps half a megabyte of code, so these should be few."""
LARGE = 2**14
"""Numbers of a weight from which on a network may have such products; others are not looked at."""


def _operator() -> torch._ops.OpOverload | None:
    try:
        return torch.ops.mkldnn._linear_pointwise.default if torch.backends.mkldnn.is_available() else None
    except AttributeError:  # a build of torch without it
        return None


ONE_DNN = _operator()

# The same function, except that it does not ask to be overridden as a whole, so that a mode sees what it calls.
attention_function = types.FunctionType(
    F.multi_head_attention_forward.__code__, {**vars(F), "has_torch_function": lambda *_: False},
    argdefs=F.multi_head_attention_forward.__defaults__)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _by_blocks(input, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, weight, _ = inputs
        by_input, by_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(input if by_weight else None, weight if by_input else None)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        by_input, by_weight, by_bias = ctx.needs_input_grad
        rows = slope.reshape(-1, slope.shape[-1])
        product = F.linear if len(rows) % MULTIPLE else linear
        return (linear(slope, weight.T) if by_input else None,
                product(rows.T, input.reshape(-1, input.shape[-1]).T) if by_weight else None,
                rows.sum(0) if by_bias else None)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input [..., k] times weight' [o, k] plus bias [o], as `F.linear`: [..., o]; gradients as often as wanted.

    By oneDNN where all are plain float32 on a CPU and there is enough to multiply, else by `F.linear` itself.
    """
    if not _fits(input, weight, bias):
        return F.linear(input, weight, bias)
    return _Linear.apply(input, weight, None if bias is None else bias.contiguous())


def _fits(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if ONE_DNN is None or not torch.backends.mkldnn.enabled or torch.is_autocast_enabled("cpu"):
        return False
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return False
    if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        return False  # what recomputes a part of a network later does so without a mode, and must save the same
    given = [input, weight] if bias is None else [input, weight, bias]
    return (all(_plain(t) and not torch._C._functorch.is_legacy_batchedtensor(t) for t in given)
            and input.ndim > 1 and weight.ndim == 2 and input.shape[-1] == weight.shape[1] and _apart(weight)
            and min(weight.shape) >= NARROW and input.numel() * len(weight) >= LEAST
            and (bias is None or bias.shape == weight.shape[:1]))


def _by_blocks(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """By oneDNN as many rows as make blocks, the others by `F.linear`."""
    rows = input.reshape(-1, input.shape[-1])
    if len(rows) in BLOCKS:
        found = ONE_DNN(rows, weight, bias, "none", [], "")
    else:
        found, done = rows.new_empty(len(rows), len(weight)), 0
        for size in BLOCKS:
            while len(rows) - done >= size:
                found[done:done + size] = ONE_DNN(rows[done:done + size], weight, bias, "none", [], "")
                done += size
        if done < len(rows):
            found[done:] = F.linear(rows[done:], weight, bias)
    # what a function gives may be written over, unless it is a view
    return torch.ops.aten._unsafe_view(found, [*input.shape[:-1], len(weight)])


def _plain(t: Tensor) -> bool:
    return (type(t) in (Tensor, nn.Parameter) and t.layout is torch.strided and t.device.type == "cpu"
            and t.dtype is torch.float32)


def _apart(weight: Tensor) -> bool:
    """Whether rows, or columns, lie one behind the other in memory; oneDNN takes no windows that overlap."""
    (rows, columns), (down, across) = weight.shape, weight.stride()
    return (across == 1 and down >= columns) or (down == 1 and across >= rows)


class _Faster(TorchFunctionMode):
    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            return func(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            with self:
                return attention_function(*args, **kwargs)
        if func is F.linear:
            return linear(*args, **kwargs)
        if func is torch.addmm and len(args) == 3 and not kwargs:
            bias, input, weight = args
            if input.ndim == weight.ndim == 2 and _fits(input, weight.T, bias):
                return linear(input, weight.T, bias)
        return func(*args, **kwargs)


def faster_products(network: nn.Module) -> contextlib.AbstractContextManager:
    """Around a call of the network: its products with weights by `linear`.

    Unless a mode watches what it calls, or part of it is compiled, which a mode would have compiled anew.
    """
    watched = torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack()
    if watched or ONE_DNN is None or not _large(network) or _compiled(network):
        return contextlib.nullcontext()
    return _Faster()


def _large(network: nn.Module) -> bool:
    return any(w.ndim == 2 and w.numel() >= LARGE and _plain(w) for w in network.parameters())


def _compiled(network: nn.Module) -> bool:
    return any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in network.modules())
