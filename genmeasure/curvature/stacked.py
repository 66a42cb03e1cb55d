"""Many perturbed copies of a model in one forward pass, where one copy after the other would leave a GPU idle."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from genmeasure.data.batches import Batch, map_tensors
from genmeasure.layers import Layer
from genmeasure.risk import FORWARD, Risk

log = logging.getLogger(__name__)

HELD, MOST_COPIES = 2**27, 512
"""Numbers of all copies' weights that are held at a time, and the most copies."""


def copies_at_once(risk: Risk, layers: Sequence[Layer]) -> int:
    """How many copies of the layers run together; 1 on a CPU, which one copy keeps busy, and for large models, as
    sharded ones are."""
    if risk.device.type != "cuda" or risk.sharded:
        return 1
    return max(1, min(MOST_COPIES, HELD // sum(risk.weights[layer.name].numel() for layer in layers)))


def runs_of(batches: Sequence[Batch], size: int, most: int) -> list[Batch]:
    """Neighbouring batches of `size` like examples joined, at most `most` of them; the others as they are."""
    found: list[list[Batch]] = []
    for batch in batches:
        run = found[-1] if found else []
        if run and len(run) < most and len(batch) == len(run[0]) == size and run[0].alike(batch):
            run.append(batch)
        else:
            found.append([batch])
    return [run[0].joined(*run[1:]) if run[1:] else run[0] for run in found]


class Convolutions(TorchFunctionMode):
    """Convolutions in the plane as products of matrices: what `vmap` makes of them for weights that differ is one
    batched product, where it would else be a convolution in hundreds of groups."""

    def __torch_function__(self, function: Callable, types: Any, arguments: tuple = (), given: Any = None) -> Any:
        if function is torch.conv2d:
            return _conv2d(*arguments, **(given or {}))
        return function(*arguments, **(given or {}))


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
            groups: int = 1) -> Tensor:
    """As `torch.conv2d`; x [batch, in, height, width], weight [out, in, height, width].

    Patches are views, copied at once: `F.unfold` takes one example after the other on a GPU.
    """
    stride, padding, dilation = (v if isinstance(v, (tuple, list, str)) else (v, v)
                                 for v in (stride, padding, dilation))
    if groups != 1 or isinstance(padding, str) or tuple(dilation) != (1, 1) or x.dim() != 4:
        with torch._C.DisableTorchFunction():
            return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    (kh, kw), (sh, sw), (ph, pw) = weight.shape[2:], stride, padding
    patches = F.pad(x, (pw, pw, ph, ph)).unfold(2, kh, sh).unfold(3, kw, sw)  # [batch, in, rows, columns, kh, kw]
    rows, columns = patches.shape[2:4]
    patches = patches.permute(0, 1, 4, 5, 2, 3).reshape(len(x), -1, rows * columns)
    out = (weight.flatten(1) @ patches).reshape(len(x), len(weight), rows, columns)
    return out if bias is None else out + bias[:, None, None]


def stacked_losses(risk: Risk, offsets: Mapping[str, Tensor], batch: Batch, sigmas: Sequence[float],
                   most: int) -> Tensor:
    """[L(W + sigma U) + L(W - sigma U)] / 2 of every example, [batch, sigmas], float64.

    offsets: U of every layer for each of g groups, [g, ...]; the batch holds the examples of one group after the other,
    equally many of each. most: copies that run together. Raises what `vmap` raises for a model that it does not take.
    """
    batch = risk.place(batch)
    groups = len(next(iter(offsets.values())))
    inputs = map_tensors(batch.inputs, lambda t: t.unflatten(0, (groups, -1)))

    def outputs(weights: Mapping[str, Tensor], some: Any) -> Tensor:
        return risk.outputs(weights, replace(batch, inputs=some))

    def losses(moves: Tensor) -> list[Tensor]:
        """[batch] for every move, by so much of U."""
        risk.spend(FORWARD * len(moves), len(batch))
        moved = {name: (risk.weights[name] + moves.view(-1, *[1] * u.dim()) * u).flatten(0, 1)
                 for name, u in offsets.items()}
        with Convolutions():
            found = vmap(outputs)(moved, map_tensors(inputs, lambda t: t.repeat(len(moves), *[1] * (t.dim() - 1))))
        return [risk.losses_of(one.double(), batch) for one in found.flatten(0, 1).split(len(batch))]
    factors = torch.tensor([f for s in sigmas for f in (s, -s)], device=risk.device, dtype=risk.dtype)
    moved = [one for some in factors.split(max(1, most // groups)) for one in losses(some)]
    return torch.stack([(up + down) / 2 for up, down in zip(moved[::2], moved[1::2], strict=True)], 1)


def takes_copies(risk: Risk, layers: Sequence[Layer], some: Batch) -> bool:
    """Whether `vmap` runs the model with copies of these layers and gives what the model gives; found out once."""
    def attempt() -> bool:
        batch = risk.place(some.select(slice(2)))
        inputs = map_tensors(batch.inputs, lambda t: t.unflatten(0, (len(batch), -1)))
        copied = {layer.name: torch.stack([risk.weights[layer.name]] * len(batch)) for layer in layers}
        expected = risk.outputs({}, batch)
        try:
            with torch.no_grad(), Convolutions():
                found = vmap(lambda weights, x: risk.outputs(weights, replace(batch, inputs=x)))(copied, inputs)
        except Exception as error:  # a model may do anything that vmap does not take
            log.info("one perturbed copy at a time, since vmap does not run this model: %s", error)
            return False
        close = risk.precision.kernels * expected.abs().max().item()
        return bool(torch.allclose(found.flatten(0, 1), expected, rtol=0, atol=close, equal_nan=True))
    return risk.shared.remember(f"takes copies of {[layer.name for layer in layers]}", attempt)
