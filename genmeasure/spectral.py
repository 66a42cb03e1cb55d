"""Spectral norm of a layer as the linear map that it is: by iteration, and bounded from above.

A convolution of n-dimensional maps with stride s is a sum of convolutions of stride one over the s^n phases of its
padded input. Zero padding makes it a part of a circular convolution on a grid that is large enough, whose singular
values are those of one matrix [out, in s^n] for each frequency: the largest bounds the layer's norm from above. The
number of patches that hold a pixel gives another bound from the reshaped kernel (measures.md 4, fact 2).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor, nn
from torch.func import functional_call, vjp

from genmeasure.layers import Layer, matrix

ROUNDING = 1e-9
"""What float64 may move a norm, relative; certified sides are enlarged by it."""
SYMBOLS = 2**24
"""Numbers held at once by the matrices of a convolution's frequencies."""


class _WithoutHooks(nn.Module):
    """A module's own forward; hooks of a sharded one would put its gathered weights in the place of given ones."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module.forward(x)


def linear_map(layer: Layer, weight: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The convolution [1, *input_shape] -> [1, *output_shape] without its bias, and its transpose, in float64."""
    module, parameters = _WithoutHooks(layer.module), {"module.weight": weight.detach().double().cpu()}
    if layer.module.bias is not None:
        parameters["module.bias"] = torch.zeros(len(weight), dtype=torch.float64)

    def forward(x: Tensor) -> Tensor:
        return functional_call(module, parameters, (x,))
    _, pull = vjp(forward, torch.zeros(1, *layer.input_shape, dtype=torch.float64))
    return forward, lambda y: pull(y)[0]


def operator_norm(layer: Layer, weight: Tensor, tolerance: float = 1e-8) -> float:
    """Spectral norm of the layer as the linear map that it is: stride, padding, dilation and groups included.

    Golub-Kahan type iteration (ARPACK) on the convolution and its transpose, which approaches from below.
    """
    if not layer.convolution:
        return torch.linalg.matrix_norm(matrix(weight).double(), 2).item()
    if not weight.any():
        return 0.0
    forward, backward = linear_map(layer, weight)

    def apply(x: np.ndarray) -> np.ndarray:
        return forward(torch.from_numpy(x).reshape(1, *layer.input_shape)).numpy().ravel()

    def transpose(y: np.ndarray) -> np.ndarray:
        return backward(torch.from_numpy(y).reshape(1, *layer.output_shape)).numpy().ravel()

    rows, columns = math.prod(layer.output_shape), math.prod(layer.input_shape)
    if min(rows, columns) < 3:
        return float(np.linalg.norm(np.stack([apply(e) for e in np.eye(columns)]), 2))
    operator = LinearOperator((rows, columns), matvec=apply, rmatvec=transpose, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(min(rows, columns))
    return float(svds(operator, k=1, tol=tolerance, return_singular_vectors=False, v0=start)[0])


def operator_norm_upper(layer: Layer, weight: Tensor) -> float:
    """At least `operator_norm`, up to nothing but float64 rounding, which is added.

    The smaller of the circular and the patch-counting bound; for padding that repeats pixels times the norm of the
    padding, the root of how often it repeats one. The exact norm for a Linear.
    """
    if not layer.convolution:
        return operator_norm(layer, weight) * (1 + ROUNDING)
    padding = _repetitions(layer)
    groups = matrix(weight).double().cpu().chunk(layer.module.groups)
    kernels = [g.reshape(len(g), *weight.shape[1:]) for g in groups]
    patches = math.sqrt(math.prod(taps_on_a_pixel(*a) for a in zip(weight.shape[2:], layer.module.stride,
                                                                    layer.module.dilation, strict=True)))
    counted = patches * max(torch.linalg.matrix_norm(g, 2).item() for g in groups)
    circular = max(_circular_norm(layer, kernel) for kernel in kernels)
    return padding * min(counted, circular) * (1 + ROUNDING)


def taps_on_a_pixel(kernel: int, stride: int, dilation: int) -> int:
    """The most patches that a pixel is in, along one axis: taps whose offset leaves the same remainder by the stride"""
    return math.ceil(kernel / (stride // math.gcd(stride, dilation)))


def _repetitions(layer: Layer) -> float:
    """Norm of the padding: 1 for zeros, else the root of the number of copies that the most repeated pixel has."""
    module = layer.module
    if module.padding_mode == "zeros":
        return 1.0
    amounts = module._reversed_padding_repeated_twice
    zeros = torch.zeros(1, *layer.input_shape, dtype=torch.float64)
    padded, pull = vjp(lambda x: F.pad(x, amounts, mode=module.padding_mode), zeros)
    return math.sqrt(pull(torch.ones_like(padded))[0].max().item())


def _circular_norm(layer: Layer, kernel: Tensor) -> float:
    """Largest singular value over all frequencies of a circular convolution that the layer is a part of.

    kernel: [out, in, *k] of one group. The input's phase r holds the pixels r, r + s, r + 2 s, … of the padded map, and
    is met by the taps at offsets r, r + s, …; the grid has a place for every output and for the taps that reach beyond.
    """
    module, axes = layer.module, kernel.ndim - 2
    stride, dilation = module.stride, module.dilation
    spread = kernel.new_zeros(*kernel.shape[:2], *((k - 1) * d + 1 for k, d in
                                                   zip(kernel.shape[2:], dilation, strict=True)))
    spread[(..., *(slice(None, None, d) for d in dilation))] = kernel
    phases = [spread[(..., *(slice(r, None, s) for r, s in zip(offset, stride, strict=True)))]
              for offset in itertools.product(*map(range, stride))]
    taps = [max(p.shape[2 + axis] for p in phases) for axis in range(axes)]
    grid = [size + t - 1 for size, t in zip(layer.output_shape[1:], taps, strict=True)]
    symbols = torch.cat([torch.fft.fftn(p, s=grid, dim=list(range(2, 2 + axes))) for p in phases if p.numel()], 1)
    symbols = symbols.flatten(2).permute(2, 0, 1)
    symbols = symbols if symbols.shape[1] <= symbols.shape[2] else symbols.mT
    largest = 0.0
    for part in symbols.split(max(1, SYMBOLS // symbols[0].numel())):
        largest = max(largest, torch.linalg.eigvalsh(part @ part.mH)[:, -1].max().clamp(min=0).item())
    return math.sqrt(largest)
