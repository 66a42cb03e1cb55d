"""What a network computes, read off the operations of one forward pass: kinks, and products of its own activations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from genmeasure.checkpoints.sharded import unit
from genmeasure.risk import FORWARD, Risk

LINEAR = frozenset((
    "add", "sub", "neg", "mean", "sum", "view", "_unsafe_view", "reshape", "flatten", "permute", "transpose", "t",
    "expand", "squeeze", "unsqueeze", "select", "slice", "cat", "stack", "clone", "detach", "alias", "contiguous",
    "_to_copy", "to", "unbind", "split", "split_with_sizes", "chunk", "roll", "flip", "constant_pad_nd",
    "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d", "avg_pool1d", "avg_pool2d",
    "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
    "upsample_nearest2d", "upsample_bilinear2d", "pixel_shuffle", "dropout"))
PRODUCTS = frozenset((
    "mul", "div", "mm", "bmm", "mv", "matmul", "addmm", "addmv", "baddbmm", "linear", "convolution", "_convolution",
    "conv1d", "conv2d", "conv3d", "batch_norm", "native_batch_norm", "cudnn_batch_norm",
    "_native_batch_norm_legit_no_training"))
"""Linear where a single factor depends on weights."""
PIECEWISE_LINEAR = frozenset((
    "relu", "relu6", "hardtanh", "leaky_relu", "threshold", "prelu", "_prelu_kernel", "clamp", "clamp_min", "clamp_max",
    "abs", "maximum", "minimum", "max", "min", "amax", "amin", "max_pool1d", "max_pool2d", "max_pool3d",
    "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool1d",
    "adaptive_max_pool2d", "adaptive_max_pool3d"))
KINKED = PIECEWISE_LINEAR | frozenset((
    "hardswish", "hardsigmoid", "hardshrink", "softshrink", "rrelu_with_noise", "round", "floor", "ceil", "trunc",
    "frac", "sign", "topk", "sort", "gt", "ge", "lt", "le"))


@dataclass(frozen=True)
class Structure:
    """linear: the outputs are piecewise linear in each layer's weight alone, so that H_ii = G_ii almost everywhere.
    kinks: first derivatives jump somewhere, or nobody can tell."""

    linear: bool
    kinks: bool


def structure(risk: Risk) -> Structure:
    """Of a risk's outputs as a function of its layers' weights, from the operations on one example.

    Linear is what consists of known linear and piecewise linear operations and of products with at most one factor
    that depends on weights, each weight being read once; it is never assumed. Operations of other libraries and of
    quantised tensors count as kinks.
    """
    batch = risk.place(next(iter(risk.batches)).select(slice(1)))
    risk.spend(FORWARD, 1)
    watched = _Watch(all(not x.tied for x in risk.layers))
    hooks = [unit(risk.model, x.parameter).register_forward_pre_hook(
        lambda *_, path=x.parameter: watched.follow(risk.model.get_parameter(path))) for x in risk.layers]
    try:
        with torch.inference_mode(False), torch.no_grad(), watched:
            risk.outputs({}, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return Structure(watched.linear, watched.kinks)


class _Watch(TorchDispatchMode):
    """Follows what depends on the layers' weights. linear: whether that may be piecewise linear at all."""

    def __init__(self, linear: bool):
        super().__init__()
        self.linear, self.kinks = linear, False
        self.weights: dict[int, Tensor] = {}
        self.roots: dict[int, int] = {}
        self.used: set[int] = set()
        self.dependent: dict[int, Tensor] = {}  # kept alive, so that no other tensor takes an id

    def follow(self, weight: Tensor) -> None:
        """Called once the weight is at hand, which a sharded model's is only while it runs."""
        self.weights[id(weight)] = weight
        self.roots[id(weight)] = id(weight)

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        found = function(*args, **(kwargs or {}))
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        weights = [t for t in given if id(t) in self.weights]
        factors = [t for t in given if id(t) in self.dependent]
        if weights or factors:
            results = [t for t in tree_leaves(found) if isinstance(t, Tensor) and t.is_floating_point()]
            self._note(function, args, weights, factors, results)
        return found

    def _note(self, function: Any, args: tuple, weights: list[Tensor], factors: list[Tensor],
              results: Iterable[Tensor]) -> None:
        name = function.overloadpacket.__name__.removesuffix("_")
        if len(weights) == 1 and not factors and name in LINEAR:  # the weight in another shape
            for t in results:
                self.roots.setdefault(id(t), self.roots[id(weights[0])])
                self.weights[id(t)] = t
            return
        roots = [self.roots[id(t)] for t in weights]
        self.linear &= name in LINEAR | PIECEWISE_LINEAR | PRODUCTS and not self.used & set(roots)
        self.used.update(roots)
        if name in PRODUCTS:
            divisor = name == "div" and any(args[1] is t for t in (*weights, *factors))
            training = "batch_norm" in name and any(a is True for a in args[5:6])
            self.linear &= len(factors) <= 1 and len(weights) <= 1 and not divisor and not training
        elif name in PIECEWISE_LINEAR:
            self.linear &= not weights
        self.kinks |= name in KINKED or function.namespace != "aten"
        self.dependent |= {id(t): t for t in results}
