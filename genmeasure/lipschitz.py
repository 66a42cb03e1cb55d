"""An upper bound on a network's Lipschitz constant, followed through its graph: where branches meet, they add up.

A chain multiplies the norms of its layers, a residual block has skip + product, both in logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genmeasure.layers import folded
from genmeasure.spectral import operator_norm_upper
from genmeasure.subject import Subject
from genmeasure.symbolic import ADDS, CONVOLUTIONS, MAX_POOLS, MEANS, SHAPES, NoRule, Symbolic, plain, rearranged, run

MEAN_POOLS = frozenset({"avg_pool1d", "avg_pool2d", "avg_pool3d"})
STEEPEST = {"relu": 1.0, "relu_": 1.0, "leaky_relu": 1.0, "leaky_relu_": 1.0, "elu": 1.0, "tanh": 1.0, "sigmoid": 0.25,
            "gelu": 1.1290, "silu": 1.0999, "softplus": 1.0, "hardtanh": 1.0, "relu6": 1.0, "dropout": 1.0,
            "log_softmax": math.sqrt(2), "softmax": 1.0}
"""Largest slopes, rounded up; of a softmax the largest singular value of its Jacobian is at most 1."""


class Slope(Symbolic):
    """Zeros of the activation's shape; log: ln of a Lipschitz constant from the input to here."""

    log: float
    facts: _Facts

    @classmethod
    def of(cls, value: Tensor, log: float, facts: _Facts) -> Slope:
        result = value.as_subclass(cls)
        result.log, result.facts = log, facts
        return result

    @classmethod
    def rule(cls, name: str, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        parts = [a for arg in args for a in (arg if isinstance(arg, (tuple, list)) else (arg,)) if isinstance(a, Slope)]
        x = parts[0]
        if name in STEEPEST:
            return cls.of(plain(x).clone(), x.log + math.log(STEEPEST[name]), x.facts)
        if name in SHAPES or name == "pad":
            return cls.of(rearranged(func, args, kwargs), x.log, x.facts)
        if name in MEANS:
            found = rearranged(func, args, kwargs)
            if x.numel() % found.numel():
                raise NoRule(f"{name} over windows that overlap")
            return cls.of(found, x.log + 0.5 * math.log(found.numel() / x.numel()), x.facts)
        if name in ("linear", *CONVOLUTIONS):
            found = func(plain(x), *args[1:], **kwargs)
            return cls.of(torch.zeros_like(found), x.log + x.facts.of_weight(args[1]), x.facts)
        if name == "batch_norm":
            found, log = torch.zeros_like(plain(x)), x.facts.of_batch_norm(args, kwargs)
            return cls.of(found, x.log + log, x.facts)
        if name in ADDS:
            logs = [p.log for p in parts]
            found = rearranged(func, args, kwargs)
            return cls.of(torch.zeros_like(found), _log_sum(logs), x.facts)
        if name in ("cat", "concat"):
            found = torch.cat([plain(p) for p in args[0]], *args[1:], **kwargs)
            return cls.of(found, 0.5 * _log_sum([2 * p.log for p in parts]), x.facts)
        if name in MAX_POOLS or name in MEAN_POOLS:
            return cls.of(*_pooled(name, func, x, args, kwargs), x.facts)
        raise NoRule(name)


def _log_sum(logs: list[float]) -> float:
    return torch.tensor(logs, dtype=torch.float64).logsumexp(0).item()


def _pooled(name: str, func: Callable, x: Slope, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, float]:
    """Each pixel counts once for each window that it is in; a mean over k whole windows' entries divides by sqrt(k)."""
    names = ("kernel_size", "stride", "padding", "ceil_mode")
    given = dict(zip(names, args[1:], strict=False)) | {k: v for k, v in kwargs.items() if k in names}
    axes = int(name[len("max_pool")])  # as long as avg_pool
    kernel = given["kernel_size"] if isinstance(given["kernel_size"], (tuple, list)) else (given["kernel_size"],) * axes
    stride = given.get("stride") or kernel
    stride = stride if isinstance(stride, (tuple, list)) else (stride,) * axes
    found = func(plain(x), *args[1:], **kwargs)
    found = found[0] if isinstance(found, tuple) else found
    windows = math.prod(math.ceil(k / s) for k, s in zip(kernel, stride, strict=True))
    whole = name in MEAN_POOLS and given.get("padding", 0) == 0 and not given.get("ceil_mode", False)
    return torch.zeros_like(found), x.log + 0.5 * math.log(windows / (math.prod(kernel) if whole else 1))


class _Facts:
    """ln of the norms of a subject's layers, known by the memory of their weights, BatchNorm folded into them."""

    def __init__(self, subject: Subject):
        model = subject.model
        self.norms, self.folded = {}, set()
        for layer in subject.layers:
            path = layer.parameter
            weight = folded(layer, subject.state, model)
            self.norms[id(model.get_parameter(path))] = _logarithm(operator_norm_upper(layer, weight))
            if layer.batch_norm is not None:
                self.folded.add(id(model.get_submodule(layer.batch_norm).running_var))

    def of_weight(self, weight: Tensor) -> float:
        if id(weight) not in self.norms:
            raise NoRule("a weight that is no layer's")
        return self.norms[id(weight)]

    def of_batch_norm(self, args: tuple, kwargs: dict[str, Any]) -> float:
        """0 where it is folded into the layer before, else of its largest factor."""
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        given = dict(zip(names, args, strict=False)) | kwargs
        if given.get("training") or given["running_var"] is None:
            raise NoRule("BatchNorm by the batch's own statistics")
        if id(given["running_var"]) in self.folded:
            return 0.0
        scale = (given["running_var"] + given.get("eps", 1e-5)).rsqrt()
        scale = scale if given.get("weight") is None else scale * given["weight"]
        return _logarithm(scale.abs().max().item())


def _logarithm(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


def log_lipschitz(subject: Subject) -> float:
    """ln of an upper bound on the Lipschitz constant of the outputs in the Euclidean norm; once per subject.

    Raises `NoRule` for an operation without a finite constant, and `InputError` for several inputs or whole numbers.
    """
    def compute() -> float:
        facts = _Facts(subject)
        return run(subject.model, next(iter(subject.train)), lambda x: Slope.of(torch.zeros_like(x), 0.0, facts),
                   "the Lipschitz constant").log
    return subject.remember("lipschitz", compute)
