"""Forward passes of other quantities than activations: a rule for each operation, and a reason where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from genmeasure.data.batches import Batch
from genmeasure.errors import InputError
from genmeasure.layers import forward

SHAPES = frozenset({"flatten", "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "contiguous", "clone",
                    "unflatten", "__getitem__", "narrow", "movedim", "swapaxes", "detach", "to", "float", "double"})
"""Operations that only rearrange numbers or drop some."""
READS = frozenset({"__get__", "size", "dim", "numel", "is_floating_point", "stride", "is_contiguous", "__len__",
                   "element_size", "get_device", "ndimension", "type", "is_complex", "requires_grad_"})
"""What a model may ask a tensor for without computing."""
ADDS = frozenset({"add", "__add__", "__radd__", "__iadd__", "add_"})
CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
MAX_POOLS = frozenset({"max_pool1d", "max_pool2d", "max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices",
                       "max_pool3d_with_indices"})
MEANS = frozenset({"mean", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"})


class NoRule(Exception):
    """An operation that the quantity has no expression for."""


class Symbolic(Tensor):
    """A tensor on whose operations a subclass has its own rules.

    A subclass gives `rule(name, func, args, kwargs)`; within it, operations are torch's own.
    """

    @classmethod
    def rule(cls, name: str, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = getattr(func, "__name__", str(func))
        with torch._C.DisableTorchFunctionSubclass():
            if name in READS:
                return func(*args, **(kwargs or {}))
            return cls.rule(name, func, args, kwargs or {})


def plain(x: Any) -> Any:
    """A symbolic tensor's numbers as an ordinary tensor; anything else as it is."""
    return x.as_subclass(Tensor) if isinstance(x, Symbolic) else x


def rearranged(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    return func(*(plain(a) for a in args), **kwargs)


@contextmanager
def in_float64(model: nn.Module) -> Iterator[None]:
    """The model in float64 for as long as the context lasts, its own numbers as they were afterwards."""
    kept = [(t, t.data) for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    try:
        for t, data in kept:
            t.data = data.double()
        yield
    finally:
        for t, data in kept:
            t.data = data


def run(model: nn.Module, batch: Batch, start: Callable[[Tensor], Symbolic], what: str) -> Symbolic:
    """The model's output for `start` of one example's input; raises `InputError` where an operation has no rule."""
    one = batch.select(slice(1))
    inputs = one.input_tensors()
    if len(inputs) != 1 or not inputs[0].is_floating_point():
        raise InputError(f"{what} needs a model of one input that is a vector of numbers, but {len(inputs)} tensors "
                         f"came, {'of whole numbers' if inputs else 'none'}; leave it out")
    some = next(model.parameters())
    given = start(inputs[0].to(some.device).double())
    wrapped = Batch(dict.fromkeys(one.inputs, given) if isinstance(one.inputs, dict) else (given,), one.targets)
    with torch.no_grad(), in_float64(model):
        return forward(model, wrapped)


def definable(subject: Any, compute: Callable[[Any], Any], what: str) -> str | None:
    """None where `compute(subject)` has a rule for every operation, else the sentence that names the one it lacks."""
    try:
        compute(subject)
    except NoRule as lacking:
        return f"{what} has no expression for {lacking}"
    return None
