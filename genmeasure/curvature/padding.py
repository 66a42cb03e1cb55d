"""Padding behind the end of sequences: columns of integer inputs on which no output depends.

A batch need be no longer than its longest sequence, so those of like length are taken together and the rest is cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genmeasure.data.batches import Batch, map_tensors
from genmeasure.risk import FORWARD, Risk

CLOSE = 2e-5
"""Of the largest output: rounding stays below it when padding is cut off. Outputs of fewer digits are left alone."""
TRIED = 16
"""Examples on which it is tried out whether padding can be cut off."""
TOGETHER = 16
"""Examples of like length that are taken at a time where memory sets no limit."""


@dataclass(frozen=True)
class Padding:
    """What a column that pads holds, in every input tensor [..., columns], one after the other: [numbers]."""

    column: Tensor

    def lengths(self, batch: Batch) -> Tensor:
        """Columns in front of the padding, at least one, [b]."""
        columns = _columns(batch)
        pads = (columns == self.column.to(columns.device)[:, None]).all(1)
        return (pads.shape[1] - pads.flip(1).int().cumprod(1).sum(1)).clamp(min=1)

    def cut(self, batch: Batch) -> Batch:
        """The batch as long as its longest sequence."""
        length = int(self.lengths(batch).max())
        return replace(batch, inputs=map_tensors(batch.inputs, lambda t: t[..., :length]))


def by_length(risk: Risk, batch: Batch, most: Callable[[int], int] | None = None) -> list[Batch]:
    """The examples, the longest sequences first, in parts without the padding that none of a part needs.

    most: how many examples to a part whose sequences have at most some length, 1 where nothing pads. Without it the
    whole batch where nothing pads.
    """
    found = find_padding(risk)
    if found is None:
        return batch.split(most(1)) if most else [batch]
    own = found.lengths(batch).cpu()
    order, parts = own.argsort(descending=True, stable=True), []
    while len(order):
        here, order = order.tensor_split([most(int(own[order[0]])) if most else TOGETHER])
        parts.append(found.cut(batch.select(here)))
    return parts


def outputs(risk: Risk, batch: Batch) -> Tensor:
    """The network's outputs [b, ...]."""
    numbered = replace(batch, rows=torch.arange(len(batch)))
    parts = by_length(risk, numbered)
    return torch.cat([risk.outputs({}, part) for part in parts])[positions(parts)]


def positions(parts: Iterable[Batch]) -> Tensor:
    """Where the examples of `parts`, one after the other, are in the order of their `rows`."""
    return torch.cat([part.rows for part in parts]).argsort()


def length(risk: Risk, batch: Batch) -> int:
    """Of the longest sequence; 1 where nothing pads."""
    found = find_padding(risk)
    return 1 if found is None else int(found.lengths(batch).max())


def cut(risk: Risk, batch: Batch) -> Batch:
    """The batch without the padding that none of its examples needs."""
    found = find_padding(risk)
    return batch if found is None else found.cut(batch)


def find_padding(risk: Risk) -> Padding | None:
    """What pads, or None where inputs are not integers in columns, or outputs change when it is cut off.

    What pads is what the first batch's shortest sequence ends in; `TRIED` examples of it, from the shortest to the
    longest, are tried out at their lengths.
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
    order = own.argsort(stable=True)
    some = order[torch.linspace(0, len(order) - 1, min(TRIED, len(order))).long()]
    batch, own = batch.select(some), own[some]
    risk.spend(2 * FORWARD, len(batch))
    whole = risk.outputs({}, risk.place(batch))
    for each in own.unique():
        rows = (own == each).nonzero().squeeze(1)
        cut_off = risk.outputs({}, risk.place(found.cut(batch.select(rows))))
        there = whole[rows.to(whole.device)]
        if cut_off.shape != there.shape or (cut_off - there).abs().max() > CLOSE * whole.abs().max():
            return None
    return found


def _columns(batch: Batch) -> Tensor:
    """[b, numbers in a column, columns]."""
    return torch.cat([t.unsqueeze(1).flatten(1, -2) for t in batch.input_tensors()], 1)
