"""How far the weights of two checkpoints lie apart, by name, without a model and without holding either in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from genmeasure.checkpoints.formats.adapter import Adapter, Factors
from genmeasure.checkpoints.names import fitted
from genmeasure.checkpoints.stored import Entry, Stored
from genmeasure.engine import progress
from genmeasure.errors import InputError
from genmeasure.estimate import Estimate

BLOCK = 1 << 22
"""Numbers of a tensor that are in memory at once."""
Distances = dict[tuple[str, str], Estimate]


def distances(start: Stored, end: Stored) -> tuple[Distances, list[str]]:
    """By (layer, term), and what was left out, one sentence each; everything is exact.

    Tensors with two or more axes: `frobenius`, `relative` to the start, `max`; all others: `l2` and `max`. One that
    the start lacks or has in another shape is a head: only `frobenius-about-zero` is listed. A tensor that is stored
    under two names counts once. `total` is the root of the sum of squared Frobenius distances of all with two or more
    axes, embeddings among them.

    Raises `InputError` where no name agrees.
    """
    begun, notes = fitted(start.entries, end.entries, start=True)
    ended, twice = _once(end.entries)
    notes += [f"{name} is stored twice and counts once" for name in twice]
    result: Distances = {}
    agreed, squares = 0, 0.0
    integers = [k for k, entry in ended.items() if not entry.dtype.is_floating_point and len(entry.shape) > 1]
    if integers:
        notes.append(f"left out {len(integers)} tensors that are no floating-point numbers ({integers[0]})")
    for name, entry in progress(ended.items(), "distances", len(ended)):
        if not entry.dtype.is_floating_point:
            continue
        weight = len(entry.shape) > 1
        layer = name.removesuffix(".weight") if weight else name
        before = begun.get(name)
        if before is None or before.shape != entry.shape:
            if weight:
                result[layer, "frobenius-about-zero"] = Estimate(math.sqrt(_sums(entry, None)[0]))
            continue
        agreed += 1
        moved, largest, size = _sums(entry, before)
        result[layer, "frobenius" if weight else "l2"] = Estimate(math.sqrt(moved))
        result[layer, "max"] = Estimate(largest)
        if weight:
            squares += moved
            if size > 0:
                result[layer, "relative"] = Estimate(math.sqrt(moved / size))
    if not agreed:
        raise InputError(f"no tensor of the start has a name and a shape that one of the end has (such as "
                         f"{next(iter(begun), None)} and {next(iter(ended), None)}); give two checkpoints of the same "
                         "architecture, or say what names become with --rename")
    result["total", "frobenius"] = Estimate(math.sqrt(squares))
    if left := [k for k in begun if k not in end.entries]:
        notes.append(f"{len(left)} tensors of the start are not in the end ({left[0]})")
    return result, notes


def adapter_distances(start: Stored, adapter: Adapter) -> tuple[Distances, list[str]]:
    """What an adapter adds, from its factors: `frobenius`, `spectral`, `relative` to the start; the product is not
    formed. Weights that it holds whole are listed as `distances` does."""
    begun, notes = fitted(start.entries, [*adapter.factors, *adapter.whole])
    for name, factors in adapter.factors.items():
        if name not in begun or factors.shape != begun[name].shape:
            raise adapter.other_base(name, None if name not in begun else begun[name].shape)
    result: Distances = {}
    squares = 0.0
    for name, factors in progress(adapter.factors.items(), "distances", len(adapter.factors)):
        values = _singular_values(factors)
        layer, moved = name.removesuffix(".weight"), values.square().sum().item()
        squares += moved
        result[layer, "frobenius"] = Estimate(math.sqrt(moved))
        result[layer, "spectral"] = Estimate(values.max().item())
        size = _sums(begun[name], None)[0]
        if size > 0:
            result[layer, "relative"] = Estimate(math.sqrt(moved / size))
    if adapter.whole:
        whole = {k: Entry.of(v) for k, v in adapter.whole.items()}
        try:
            rest, _ = distances(Stored({k: v for k, v in begun.items() if k in whole}, ""), Stored(whole, ""))
        except InputError:  # none of them is in the start: a new head
            rest = {(k.removesuffix(".weight"), "frobenius-about-zero"): Estimate(v.double().norm().item())
                    for k, v in adapter.whole.items() if v.ndim > 1}
        squares += rest.pop(("total", "frobenius"), Estimate(0.0)).value ** 2
        result |= rest
    result["total", "frobenius"] = Estimate(math.sqrt(squares))
    return result, [*notes, f"{len(adapter.factors)} low-rank updates taken as factors"]


def _once(entries: dict[str, Entry]) -> tuple[dict[str, Entry], list[str]]:
    kept: dict[str, Entry] = {}
    seen: set[tuple] = set()
    for name, entry in entries.items():
        if entry.same_as is None or (entry.same_as, entry.shape) not in seen:
            kept[name] = entry
        seen.add((entry.same_as, entry.shape))
    return kept, [k for k in entries if k not in kept]


def _sums(end: Entry, start: Entry | None) -> tuple[float, float, float]:
    """Of end - start, or of end where there is no start: sum of squares, largest magnitude; sum of start's squares."""
    moved = size = largest = 0.0
    for rows in _blocks(end.shape):
        now = end.rows(*rows).double()
        if start is not None:
            before = start.rows(*rows).double()
            size += before.square().sum().item()
            now -= before
        moved += now.square().sum().item()
        largest = max(largest, now.abs().max().item() if now.numel() else 0.0)
    if not math.isfinite(moved):
        raise InputError("the checkpoints hold weights that are NaN or infinite, so that no distance is defined; use "
                         "checkpoints from before training diverged")
    return moved, largest, size


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[int, int | None]]:
    """Rows from and to, a `BLOCK` of numbers at a time."""
    if not shape:
        yield 0, None
        return
    step = max(1, BLOCK // max(1, math.prod(shape[1:])))
    for begin in range(0, shape[0], step):
        yield begin, min(begin + step, shape[0])


def _singular_values(factors: Factors) -> Tensor:
    """Of scale * b @ a, from the small triangles of b = Q R and a' = Q' R': those of R R'' are the same."""
    b, a = factors.b.flatten(1).double(), factors.a.flatten(1).double()
    triangles = torch.linalg.qr(b, mode="r").R @ torch.linalg.qr(a.T, mode="r").R.T
    return abs(factors.scale) * torch.linalg.svdvals(triangles)
