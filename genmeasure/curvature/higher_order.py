"""Operations whose derivatives of higher order are wrong or missing in torch, written out for the call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp
from torch.overrides import TorchFunctionMode


def layer_norm(input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None,
               bias: Tensor | None = None, eps: float = 1e-5, *_: Any) -> Tensor:
    over = tuple(range(-len(normalized_shape), 0))
    centred = input - input.mean(over, keepdim=True)
    result = centred * (centred.square().mean(over, keepdim=True) + eps).rsqrt()
    result = result if weight is None else result * weight
    return result if bias is None else result + bias


def instance_norm(input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None,
                  weight: Tensor | None = None, bias: Tensor | None = None, use_input_stats: bool = True,
                  momentum: float = 0.1, eps: float = 1e-5) -> Tensor:
    if not use_input_stats:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    shape = (-1, *[1] * (input.ndim - 2))
    result = layer_norm(input, input.shape[2:], eps=eps)
    result = result if weight is None else result * weight.reshape(shape)
    return result if bias is None else result + bias.reshape(shape)


class written_out(TorchFunctionMode):
    """Within the block, normalisation by the input's own statistics is made of elementary operations.

    torch 2.13 treats those statistics as constants from the second derivative in forward mode, and the third in
    reverse mode, on: silently, with an error of the order of the result.
    """

    REPLACED: dict[Callable, Callable] = {F.layer_norm: layer_norm, torch.layer_norm: layer_norm,  # noqa: RUF012
                                          F.instance_norm: instance_norm}

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return self.REPLACED.get(func, func)(*args, **(kwargs or {}))


def directional(function: Callable[[Tensor], Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """First and second derivative of `function(a)`, any shape, at a = 0, `like` a scalar.

    By nested forward mode, or in reverse where an operation has none (silu inside a network, for one).
    """
    zero, one = torch.zeros_like(like), torch.ones_like(like)
    with written_out():
        try:
            (_, slope), (_, second) = jvp(lambda a: jvp(function, (a,), (one,)), (zero,), (one,))
            return slope, second
        except NotImplementedError:
            with torch.enable_grad():
                a = zero.requires_grad_()
                slope = _reverse_slope(function(a), a)
                return slope.detach(), _reverse_slope(slope, a).detach()


def first_derivative(function: Callable[[Tensor], Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """Value and first derivative of `function(a)` at a = 0, `like` a scalar.

    By forward mode, or in reverse where an operation has none.
    """
    zero, one = torch.zeros_like(like), torch.ones_like(like)
    with written_out():
        try:
            return jvp(function, (zero,), (one,))
        except NotImplementedError:
            with torch.enable_grad():
                a = zero.requires_grad_()
                values = function(a)
                return values.detach(), _reverse_slope(values, a).detach()


def _reverse_slope(values: Tensor, a: Tensor) -> Tensor:
    """d values / da for a scalar a: the derivative with respect to u of <u, d values / da>, which is linear in u."""
    if not values.requires_grad:
        return torch.zeros_like(values)
    u = torch.zeros_like(values, requires_grad=True)
    (weighted,) = torch.autograd.grad(values, a, u, create_graph=True, materialize_grads=True)
    if not weighted.requires_grad:
        return torch.zeros_like(values)
    (slope,) = torch.autograd.grad(weighted, u, torch.ones_like(weighted), create_graph=True, materialize_grads=True)
    return slope
