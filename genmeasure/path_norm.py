"""The path norm of a network by one forward pass: the sum over all paths of the product of their weights' sizes.

An input of ones goes through the network with |w|^p in place of every weight and bias, max-pooling replaced by a sum
and BatchNorm by the affine map that it is (Gonon et al. 2024, arXiv:2310.01225). Every number is kept with a common
logarithmic factor, so that nothing overflows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genmeasure.subject import Subject
from genmeasure.symbolic import ADDS, CONVOLUTIONS, MAX_POOLS, MEANS, SHAPES, NoRule, Symbolic, plain, rearranged, run

RECTIFIERS = frozenset({"relu", "relu_", "leaky_relu", "leaky_relu_", "dropout"})
"""Homogeneous and never larger than their input in size: on what is not negative, at most the identity."""


class Paths(Symbolic):
    """Sums over paths, times e^log. power: p of |w|^p."""

    log: float
    power: float

    @classmethod
    def of(cls, value: Tensor, log: float, power: float) -> Paths:
        top = value.max().item() if value.numel() else 0.0
        if top > 0:
            value, log = value / top, log + math.log(top)
        result = value.as_subclass(cls)
        result.log, result.power = log, power
        return result

    @classmethod
    def rule(cls, name: str, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        x = next(a for a in _flat(args) if isinstance(a, Paths))
        log, power = x.log, x.power

        def size(weight: Tensor | None, at: float = 0.0) -> Tensor | None:
            """|w|^p e^-at."""
            return None if weight is None else plain(weight).abs().pow(power) * math.exp(-min(max(at, -700), 700))
        if name in RECTIFIERS:
            return x
        if name in SHAPES or name in MEANS or name in ("sum", "pad"):
            found = rearranged(func, args, kwargs)
            return cls.of(found if power == 1 or name not in MEANS else
                          found * (found.numel() / x.numel()) ** (power - 1), log, power)
        if name in ("avg_pool1d", "avg_pool2d"):
            if power != 1:
                raise NoRule(f"{name} in squared weights")
            return cls.of(rearranged(func, args, kwargs), log, power)
        if name == "linear":
            return cls.of(F.linear(plain(x), size(args[1]), size(_given(args, kwargs, 2, "bias"), log)), log, power)
        if name in CONVOLUTIONS:
            bias = _given(args, kwargs, 2, "bias")
            rest = {k: v for k, v in kwargs.items() if k != "bias"}
            return cls.of(func(plain(x), size(args[1]), size(bias, log), *args[3:], **rest), log, power)
        if name in ADDS:
            return _sum(cls, args[:2], power)
        if name in ("cat", "concat"):
            return _cat(cls, args, kwargs, power)
        if name in MAX_POOLS:
            return cls.of(_pooled_sum(name, plain(x), args[1:], kwargs), log, power)
        if name == "batch_norm":
            return _batch_norm(cls, size, args, kwargs, power)
        raise NoRule(name)


def _flat(args: tuple) -> list:
    return [a for arg in args for a in (arg if isinstance(arg, (tuple, list)) else (arg,))]


def _given(args: tuple, kwargs: dict[str, Any], place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs.get(name)


def _aligned(parts: list, power: float) -> tuple[list[Tensor], float]:
    """Numbers on one common factor; constants count by their sizes."""
    log = max(p.log for p in parts if isinstance(p, Paths))
    found = []
    for p in parts:
        if isinstance(p, Paths):
            found.append(plain(p) * math.exp(p.log - log))
        else:
            found.append(torch.as_tensor(p, dtype=torch.float64).abs().pow(power) * math.exp(-min(max(log, -700), 700)))
    return found, log


def _sum(cls: type[Paths], parts: tuple, power: float) -> Paths:
    (one, other), log = _aligned(list(parts), power)
    return cls.of(one + other, log, power)


def _cat(cls: type[Paths], args: tuple, kwargs: dict[str, Any], power: float) -> Paths:
    parts, log = _aligned(list(args[0]), power)
    return cls.of(torch.cat(parts, *args[1:], **kwargs), log, power)


def _pooled_sum(name: str, x: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    given = dict(zip(names, args, strict=False)) | {k: v for k, v in kwargs.items() if k in names}
    kernel, dilation = given["kernel_size"], given.get("dilation", 1)
    axes = int(name[len("max_pool")])
    if any(d != 1 for d in (dilation if isinstance(dilation, (tuple, list)) else (dilation,))):
        raise NoRule(f"{name} with dilation")
    kernel = tuple(kernel) if isinstance(kernel, (tuple, list)) else (kernel,) * axes
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[axes - 1]
    ceil, padding = given.get("ceil_mode", False), given.get("padding", 0)
    if axes == 1:  # has no divisor of its own
        return pool(x, kernel, given.get("stride"), padding, ceil, True) * kernel[0]
    return pool(x, kernel, given.get("stride"), padding, ceil, True, divisor_override=1)


def _batch_norm(cls: type[Paths], size: Callable, args: tuple, kwargs: dict[str, Any], power: float) -> Paths:
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = dict(zip(names, args, strict=False)) | kwargs
    x, mean, variance = given["input"], given["running_mean"], given["running_var"]
    if given.get("training") or mean is None:
        raise NoRule("BatchNorm by the batch's own statistics")
    scale = (variance + given.get("eps", 1e-5)).rsqrt()
    scale = scale if given.get("weight") is None else scale * given["weight"]
    shift = -mean * scale + (0 if given.get("bias") is None else given["bias"])
    ones = [1, -1, *[1] * (x.ndim - 2)]
    return cls.of(plain(x) * size(scale).reshape(ones) + size(shift, x.log).reshape(ones), x.log, power)


def log_path_norm(subject: Subject, power: float = 1.0) -> float:
    """ln of the sum of the outputs for an input of ones and |w|^power for every weight and bias; -inf for zero.

    Raises `NoRule` for an operation without an expression, and `InputError` for several inputs or whole numbers.
    """
    def compute() -> float:
        out = run(subject.model, next(iter(subject.train)), lambda x: Paths.of(torch.ones_like(x), 0.0, power),
                  "the path norm")
        total = plain(out).sum().item()
        return out.log + math.log(total) if total > 0 else -math.inf
    return subject.remember(f"path norm {power}", compute)
