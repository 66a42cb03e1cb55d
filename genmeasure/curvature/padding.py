"""Padding behind the end of sequences: columns of integer inputs on which no output depends.

A batch need be no longer than its longest sequence, so those of like length are taken together and the rest is cut off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genmeasure.data.batches import Batch, map_tensors
from genmeasure.risk import FORWARD, Risk

CLOSE = 2e-5
"""Of the largest output: rounding stays below it when padding is cut off. Outputs of fewer digits are left alone."""


@dataclass(frozen=True)
class Padding:
    """What a column that pads holds, in every input tensor [..., columns], one after the other: [numbers]."""

    column: Tensor

    def lengths(self, batch: Batch) -> Tensor:
        """Columns in front of the padding, at least one, [b]."""
        pads = (_columns(batch) == self.column[:, None]).all(1)
        return (pads.shape[1] - pads.flip(1).int().cumprod(1).sum(1)).clamp(min=1)

    def cut(self, batch: Batch) -> Batch:
        """The batch as long as its longest sequence."""
        length = int(self.lengths(batch).max())
        return replace(batch, inputs=map_tensors(batch.inputs, lambda t: t[..., :length]))


def lengths(risk: Risk, batch: Batch) -> Tensor:
    """Of every example's sequence, [b]; ones where nothing can be cut off."""
    found = find_padding(risk)
    return torch.ones(len(batch), dtype=torch.int64) if found is None else found.lengths(batch).cpu()


def cut(risk: Risk, batch: Batch) -> Batch:
    """The batch without the padding that none of its examples needs."""
    found = find_padding(risk)
    return batch if found is None else found.cut(batch)


def find_padding(risk: Risk) -> Padding | None:
    """What pads, or None where inputs are not integers in columns, or outputs change when it is cut off.

    What pads is what the first batch's shortest sequence ends in; every example of it is tried out at its length.
    """
    return risk.shared.remember("padding", lambda: _find_padding(risk))


@torch.no_grad()
def _find_padding(risk: Risk) -> Padding | None:
    batch = next(iter(risk.batches))
    tensors = batch.input_tensors()
    if not tensors or any(t.is_floating_point() or t.is_complex() or t.ndim < 2 for t in tensors):
        return None
    if len({t.shape[-1] for t in tensors}) > 1 or torch.finfo(risk.dtype).eps > CLOSE:
        return None
    columns = _columns(batch)
    last = columns[:, :, -1:]
    runs = (columns == last).all(1).flip(1).int().cumprod(1).sum(1)
    found = Padding(last[runs.argmax(), :, 0].clone())
    own = found.lengths(batch)
    if int(own.min()) == columns.shape[2]:
        return None
    risk.spend(2 * FORWARD, len(batch))
    whole = risk.outputs({}, risk.place(batch))
    for length in own.unique():
        rows = (own == length).nonzero().squeeze(1)
        some = risk.outputs({}, risk.place(found.cut(batch.select(rows))))
        there = whole[rows.to(whole.device)]
        if some.shape != there.shape or (some - there).abs().max() > CLOSE * whole.abs().max():
            return None
    return found


def _columns(batch: Batch) -> Tensor:
    """[b, numbers in a column, columns]."""
    return torch.cat([t.unsqueeze(1).flatten(1, -2) for t in batch.input_tensors()], 1)
