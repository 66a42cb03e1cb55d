"""The uses of weights in a forward pass: which operation takes a weight, and where its examples are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genmeasure.matrix_product import linear

CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
PATCHES = 2**21
"""Numbers held at once by the patches of a convolution's inputs."""


@dataclass(frozen=True)
class Layout:
    """Where the examples are among the rows of a call: b examples of several rows each, or several rows of b each."""

    layer: str
    examples_first: bool = True

    def split(self, rows: Tensor, examples: int) -> Tensor:
        """[rows, ...] -> [b, rows / b, ...]."""
        if self.examples_first:
            return rows.reshape(examples, -1, *rows.shape[1:])
        return rows.reshape(-1, examples, *rows.shape[1:]).transpose(0, 1)

    def join(self, split: Tensor) -> Tensor:
        """[b, rows / b, ...] -> [rows, ...]."""
        return (split if self.examples_first else split.transpose(0, 1)).flatten(0, 1)

    def spread(self, values: Tensor, rows: int) -> Tensor:
        """[b, ...] -> [rows, ...]: every example's value on each of its rows."""
        times = rows // len(values)
        if self.examples_first:
            return values.repeat_interleave(times, 0)
        return values.repeat(times, *[1] * (values.ndim - 1))


@dataclass(frozen=True)
class Call:
    """One use of a layer's weight: output = operation(input, weight), linear in both.

    transposed: the weight is [in, out]. scale [out, ...]: gradients are with respect to scale times the output. As
    rows, input and output of linear operations are [rows, features], those of convolutions [rows, channels, ...].
    """

    weight: Tensor
    input: Tensor
    convolution: tuple | None
    operation: Callable[[Tensor, Tensor], Tensor]
    transposed: bool = False
    scale: Tensor | None = None

    def as_rows(self, tensor: Tensor) -> Tensor:
        return tensor if self.convolution else tensor.reshape(-1, tensor.shape[-1])

    def columns(self, values: Tensor) -> Tensor:
        """[rows, channels] ready to be multiplied with an input or output in rows."""
        return values.reshape(*values.shape, *[1] * (self.weight.ndim - 2)) if self.convolution else values

    def scaled(self, weight: Tensor) -> Tensor:
        """The weight, or a direction of it, that gives what gradients are with respect to."""
        if self.scale is None:
            return weight
        order = torch.channels_last if memory_order(self) is not None else torch.contiguous_format
        return (weight * self.scale[:, None]).contiguous(memory_format=order)

    @property
    def groups(self) -> int:
        return self.convolution[3] if self.convolution else 1

    def as_factor(self, vectors: Tensor) -> Tensor:
        """Directions of the weight [b, d] as [b, g, k, o], the order of `factors`."""
        if self.transposed:
            return vectors.reshape(-1, 1, *self.weight.shape)
        return vectors.reshape(len(vectors), self.groups, len(self.weight) // self.groups, -1).mT

    def from_factor(self, factor: Tensor, weight: Tensor) -> Tensor:
        """[b, g, k, o] -> [b, d], the order of the weight."""
        return (factor if self.transposed else factor.mT).reshape(len(factor), weight.numel())

    def joined(self, layout: Layout, moves: Tensor, like: Tensor) -> Tensor:
        """Moves of the output [b, g, t, o], the order of `factors`, in the shape of the output."""
        if self.convolution is None:
            return layout.join(moves[:, 0]).reshape(like.shape)
        positions = like.shape[2:].numel()
        moves = moves.unflatten(2, (-1, positions)).permute(0, 2, 1, 4, 3)  # [b, m, g, o, positions]
        return layout.join(moves.flatten(2, 3)).reshape(like.shape)

    def parts(self, delta: Tensor, examples: int) -> Iterator[tuple[Call, Tensor, int]]:
        """The call, delta and number of examples; of a convolution in parts whose patches hold `PATCHES` numbers."""
        if self.convolution is None or len(delta) != examples:
            yield self, delta, examples
            return
        step = max(1, PATCHES // (self.groups * self.weight[0].numel() * delta.shape[2:].numel()))
        for x, d in zip(self.input.split(step), delta.split(step), strict=True):
            yield dataclasses.replace(self, input=x), d, len(x)

    def factors(self, layout: Layout, delta: Tensor, examples: int) -> tuple[Tensor, Tensor]:
        """a [b, g, k, t] and d [b, g, t, o] whose product over t is the weight's gradient of every example, by group.

        t counts the places where an example uses the weight: tokens, positions of a convolution.
        """
        if self.convolution is None:
            a = layout.split(self.as_rows(self.input), examples)
            d = layout.split(self.as_rows(delta), examples)
            return a.mT[:, None], d[:, None]
        stride, padding, dilation, groups = self.convolution
        delta = delta if self.scale is None else delta * self.scale
        a = layout.split(_patches(self.input, self.weight.shape[2:], stride, padding, dilation), examples)
        d = layout.split(delta.flatten(2), examples)  # [b, m, o, t]
        a, d = (t.unflatten(2, (groups, -1)).transpose(1, 2) for t in (a, d))  # [b, g, m, k, t], [b, g, m, o, t]
        return a.transpose(2, 3).flatten(3), d.transpose(3, 4).flatten(2, 3)


Meet = Callable[[int, Call], None]
"""(number of a use, its call), as long as the input is at hand in the processor's cache."""
Hear = Callable[[int, Call, Tensor], None]
"""(number of a use, its call, gradient with respect to its output)."""
Back = Callable[[Tensor, bool], None]
"""(direction in the space of the outputs [b, ...], whether it is the last one): a backward pass."""


def _patches(x: Tensor, kernel: torch.Size, stride: Any, padding: Any, dilation: Any) -> Tensor:
    """im2col in any number of dimensions: x [n, c, ...] -> [n, c * prod(kernel), positions]."""
    spatial = len(kernel)
    stride, dilation = (tuple(v) if isinstance(v, (tuple, list)) else (v,) * spatial for v in (stride, dilation))
    stride, dilation = (v * spatial if len(v) == 1 else v for v in (stride, dilation))
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        each = tuple(padding) if isinstance(padding, (tuple, list)) else (padding,)
        sides = [(p, p) for p in (each * spatial if len(each) == 1 else each)]
    if spatial == 2 and all(a == b for a, b in sides):
        return F.unfold(x, tuple(kernel), dilation, tuple(a for a, _ in sides), stride)
    x = F.pad(x, [p for side in reversed(sides) for p in side])
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        x = x.unfold(axis, d * (k - 1) + 1, s)[..., ::d]
    positions = x.shape[2:2 + spatial].numel()
    x = x.movedim(tuple(range(-spatial, 0)), tuple(range(2, 2 + spatial)))  # [n, c, kernel..., positions...]
    return x.reshape(len(x), -1, positions)


def normalisation(input: Tensor, mean: Tensor | None, variance: Tensor | None, weight: Tensor | None = None,
                  bias: Tensor | None = None, training: bool = False, momentum: float = 0.1,
                  eps: float = 1e-5) -> tuple[Tensor, Tensor] | None:
    """Scale and shift [channels] of a normalisation by known mean and variance, the arguments as of `F.batch_norm`."""
    given = [t for t in (mean, variance, weight, bias) if t is not None]
    if training or mean is None or any(t.dtype != input.dtype for t in given):
        return None
    scale = (variance + eps).rsqrt() if weight is None else weight * (variance + eps).rsqrt()
    return scale, -mean * scale if bias is None else bias - mean * scale


def batch_norm(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Of known mean and variance written out, x * scale + shift: the kernel's backward pass also sums for gradients of
    its weights that nobody asks for."""
    found = normalisation(input, *args, **kwargs)
    if found is None:
        return F.batch_norm(input, *args, **kwargs)
    scale, shift = (t.reshape(-1, *[1] * (input.ndim - 2)) for t in found)
    return torch.addcmul(shift, input, scale)


def memory_order(call: Call) -> torch.memory_format | None:
    """What gradients around a convolution of images with channels last are to be kept in: padding and slicing
    do not, and all that comes before them in the network would be slower."""
    last = call.input.ndim == 4 and call.input.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if call.convolution and last else None


def weight_key(weight: Tensor) -> tuple:
    """Names a weight wherever it turns up, detached or not; a slice that starts where it does has another shape."""
    return weight.data_ptr(), tuple(weight.shape)


def linear_call(func: Callable, args: tuple, kwargs: Mapping) -> Call | None:
    """The use of a weight that a call of a torch function is, or None."""
    if func is F.linear:
        return _linear(*args, **kwargs)
    if func in CONVOLUTIONS:
        return _convolution(func, *args, **kwargs)
    if func is torch.addmm and len(args) == 3 and not kwargs:
        return Call(args[2], args[1], None, lambda x, w: x @ w, transposed=True)
    return None


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Call:
    return Call(weight, input, None, linear)


def _convolution(func: Callable, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
                 padding: Any = 0, dilation: Any = 1, groups: int = 1) -> Call:
    setting = (stride, padding, dilation, groups)
    return Call(weight, input, setting, lambda x, w: func(x, w, None, *setting))
