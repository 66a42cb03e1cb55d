"""A start and an end under the names of one model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from os import PathLike

from torch import Tensor

from genmeasure.checkpoints.locate import locate
from genmeasure.checkpoints.names import Table, fitted, renamed
from genmeasure.checkpoints.read import is_adapter, read, read_adapter


@dataclass(frozen=True)
class Pair:
    """start, end: weights by the model's names, as far as they are the model's. notes: by `start` and `end`."""

    start: dict[str, Tensor]
    end: dict[str, Tensor]
    notes: Mapping[str, tuple[str, ...]]


def read_start(place: str | PathLike, model: Collection[str], renames: Table = (),
               ) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The start's weights by the model's names, and what that changed; parts for another task are left out."""
    found = read(locate(str(place)))
    tensors, notes = fitted(renamed(found.tensors, renames), model, start=True)
    return tensors, (*found.notes, *notes)


def read_pair(start: str | PathLike, end: str | PathLike, model: Collection[str], renames: Table = ()) -> Pair:
    """Both checkpoints; an end that is an adapter is merged into the start, under the names that the model has.

    Raises `InputError` for what cannot be read, and for an adapter that is not the start's.
    """
    begun, start_notes = read_start(start, model, renames)
    place = locate(str(end))
    if is_adapter(place):
        adapter = read_adapter(place)
        merged = f"merged {len(adapter.factors)} low-rank updates into the start"
        return Pair(begun, adapter.merged(begun), {"start": start_notes, "end": (merged, *adapter.notes)})
    found = read(place)
    ended, notes = fitted(renamed(found.tensors, renames), model)
    return Pair(begun, ended, {"start": start_notes, "end": (*found.notes, *notes)})
