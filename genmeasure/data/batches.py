"""Batches in a fixed order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genmeasure.errors import InputError

LABEL_KEYS = ("labels", "label", "targets", "target", "y")
DEFAULT_BATCH_SIZE = 64


def map_tensors(inputs: Any, f: Callable[[Tensor], Tensor]) -> Any:
    """`inputs` with `f` applied to every tensor or array in it, through mappings and tuples."""
    if isinstance(inputs, (Tensor, np.ndarray)):
        return f(torch.as_tensor(inputs))
    if isinstance(inputs, Mapping):
        return {k: map_tensors(v, f) for k, v in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(map_tensors(v, f) for v in inputs)
    return inputs


@dataclass(frozen=True)
class Batch:
    """Some examples.

    inputs: positional (tuple) or keyword (dict) arguments of the model; tensors have examples in front.
    targets: [batch], what the model was trained on. clean: [batch], the true labels where `targets` are noisy.
    index: position of the batch in its data set, so that draws can be tied to it. rows: [batch], positions of the
    examples in their data set, or in the list that `gather` was given.
    """

    inputs: tuple | dict
    targets: Tensor
    clean: Tensor | None = None
    index: int = 0
    rows: Tensor | None = None

    @classmethod
    def of(cls, batch: Any, index: int = 0) -> Batch:
        """From what a user's loader yields: (x, y), (x, y, clean), a mapping with a label key, or a `Batch`.

        Arrays become tensors. Raises `InputError` for anything else and for tensors of unequal length.
        """
        if isinstance(batch, Batch):
            return replace(batch, index=index)
        if isinstance(batch, Mapping):
            inputs = dict(batch)
            key = next((k for k in LABEL_KEYS if k in inputs), None)
            if key is None:
                raise InputError(f"a batch came with the keys {sorted(inputs)}; one of {', '.join(LABEL_KEYS)} "
                                 "must hold the labels")
            targets = torch.as_tensor(inputs.pop(key))
            clean = inputs.pop("clean", None)
            return cls(map_tensors(inputs, torch.as_tensor), targets,
                       None if clean is None else torch.as_tensor(clean), index)._checked()
        if isinstance(batch, (tuple, list)) and len(batch) in (2, 3):
            x, y, *rest = batch
            x = tuple(x) if isinstance(x, (tuple, list)) else x if isinstance(x, Mapping) else (torch.as_tensor(x),)
            return cls(map_tensors(x, torch.as_tensor), torch.as_tensor(y),
                       torch.as_tensor(rest[0]) if rest else None, index)._checked()
        raise InputError(f"a batch of type {type(batch).__name__} came; expected (inputs, labels), "
                         "(inputs, labels, clean labels) or a mapping with the key 'labels'")

    def _checked(self) -> Batch:
        lengths = {len(t) for t in self.tensors()}
        if len(lengths) > 1:
            counts = " and ".join(map(str, sorted(lengths)))
            raise InputError(f"a batch came whose tensors hold {counts} examples; there must be one label for each "
                             "input")
        if self.clean is not None and self.clean.shape != self.targets.shape:
            raise InputError(f"labels of shape {list(self.targets.shape)} and clean labels of shape "
                             f"{list(self.clean.shape)} came; a batch of three holds (inputs, labels, clean labels), "
                             "several inputs go in a tuple or a mapping of their own")
        return self

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Batch:
        """Move; floating-point tensors take the parameters' dtype."""
        def move(t: Tensor) -> Tensor:
            return t.to(device=device, dtype=dtype if t.is_floating_point() else None)
        return replace(self, inputs=map_tensors(self.inputs, move), targets=move(self.targets),
                       clean=None if self.clean is None else move(self.clean))

    def select(self, rows: slice | Tensor | None) -> Batch:
        """Some of the examples; None puts a batch dimension of one in front of a single example."""
        return replace(self, inputs=map_tensors(self.inputs, lambda t: t[rows]), targets=self.targets[rows],
                       clean=None if self.clean is None else self.clean[rows],
                       rows=None if self.rows is None or rows is None else self.rows[rows])

    def split(self, size: int) -> list[Batch]:
        """Parts of at most `size` examples."""
        return [self] if len(self) <= size else [self.select(slice(i, i + size)) for i in range(0, len(self), size)]

    def tensors(self) -> list[Tensor]:
        """Every tensor: inputs, targets, clean targets."""
        return [*self.input_tensors(), self.targets] + ([] if self.clean is None else [self.clean])

    def input_tensors(self) -> list[Tensor]:
        """The inputs' tensors, those of a mapping by sorted key."""
        found: list[Tensor] = []
        inputs = self.inputs
        map_tensors(dict(sorted(inputs.items())) if isinstance(inputs, dict) else inputs, found.append)
        return found

    def alike(self, other: Batch) -> bool:
        """Whether the examples of both have the same shapes."""
        return [t.shape[1:] for t in self.tensors()] == [t.shape[1:] for t in other.tensors()]

    def joined(self, *others: Batch) -> Batch:
        """The examples of all, in order."""
        batches = (self, *others)
        parts: list[list[Tensor]] = [[] for _ in batches]
        for batch, tensors in zip(batches, parts, strict=True):
            map_tensors(batch.inputs, tensors.append)
        columns = iter([torch.cat(column) for column in zip(*parts, strict=True)])
        numbered = all(b.rows is not None for b in batches)
        return replace(self, inputs=map_tensors(self.inputs, lambda t: next(columns)),
                       targets=torch.cat([b.targets for b in batches]),
                       clean=None if self.clean is None else torch.cat([b.clean for b in batches]),
                       rows=torch.cat([b.rows for b in batches]) if numbered else None)

    def digest(self) -> str:
        """A hash of every tensor in the batch, its dtype and shape included."""
        h = hashlib.sha256()
        h.update(repr(sorted(self.inputs) if isinstance(self.inputs, dict) else len(self.inputs)).encode())
        for t in self.tensors():
            h.update(f"{t.dtype}{tuple(t.shape)}".encode())
            h.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return h.hexdigest()


class Batches:
    """A data set as batches that come in the same order each time.

    source: anything that can be iterated; a one-shot iterator is kept in memory. Raises `InputError` for an empty
    data set and for a source whose order changes between two passes (a shuffling loader).

    targets: of every batch, whose lengths may differ where examples are sequences. notes: which examples were taken and
    what was done to them, one sentence each. confusion: [classes, classes], P(given label | true label) where labels
    were made wrong in a known way.
    """

    def __init__(self, source: Iterable, name: str = "data", notes: tuple[str, ...] = (),
                 confusion: Tensor | None = None):
        self.name, self.notes, self.confusion = name, notes, confusion
        self._source = tuple(source) if isinstance(source, Iterator) else source
        digests, targets, self.size = [], [], 0
        self.lengths: list[int] = []
        for batch in self:
            self.lengths.append(len(batch))
            digests.append(batch.digest())
            targets.append(batch.targets)
            self.size += len(batch)
        if self.size == 0:
            raise InputError(f"the data set {name!r} is empty; at least one example is needed")
        if next(iter(self)).digest() != digests[0]:
            raise InputError(f"the data set {name!r} gave another first batch on a second pass; "
                             "measure on a loader with shuffle=False and without augmentation")
        self.count = len(digests)
        self.targets = tuple(targets)
        self.fingerprint = hashlib.sha256("".join(digests).encode()).hexdigest()

    @classmethod
    def from_arrays(cls, x: Any, y: Any, clean: Any = None, *, batch_size: int = DEFAULT_BATCH_SIZE,
                    name: str = "data", notes: tuple[str, ...] = ()) -> Batches:
        """Cut arrays x [n, ...], y [n] and clean [n] into batches, the last one possibly shorter."""
        whole = Batch.of((x, y) if clean is None else (x, y, clean))
        return cls([whole.select(slice(i, i + batch_size)) for i in range(0, len(whole), batch_size)], name,
                   notes)

    @property
    def labels(self) -> Tensor:
        """The targets of all examples, where they have the same shape."""
        return torch.cat(self.targets)

    def relabelled(self, labels: Tensor, note: str = "", confusion: Tensor | None = None) -> Batches:
        """The same examples with other labels [n]; the present ones become the clean ones, if there are none yet.

        confusion: [classes, classes], P(given label | true label).
        """
        parts = [replace(batch, targets=labels[batch.rows].to(batch.targets),
                         clean=batch.targets if batch.clean is None else batch.clean) for batch in self]
        return Batches(parts, self.name, (*self.notes, note) if note else self.notes, confusion)

    def gather(self, rows: Tensor) -> list[Batch]:
        """The examples at `rows` [m], ascending and repeated as they come, in batches no longer than the longest one.

        The batches' `rows` are positions in the list given, so that what was drawn for each can be looked up.
        """
        return gather(self, rows, max(self.lengths))

    def __iter__(self) -> Iterator[Batch]:
        with torch.random.fork_rng(devices=[]):  # a DataLoader draws from the global generator when it starts
            source = iter(self._source)
        start = 0
        for index, batch in enumerate(source):
            found = Batch.of(batch, index)
            yield replace(found, rows=torch.arange(start, start + len(found)))
            start += len(found)

    def __len__(self) -> int:
        return self.count


def gather(source: Iterable[Batch], rows: Tensor, limit: int) -> list[Batch]:
    """The examples at `rows` [m] (ascending, possibly repeated) of a source whose batches number their examples.

    Neighbours are joined where their shapes allow it, at most `limit` to a batch. The new batches' `rows` are positions
    in the list given.
    """
    gathered: list[Batch] = []
    for batch in source:
        first = int(batch.rows[0])
        start, end = torch.searchsorted(rows, torch.tensor([first, first + len(batch)])).tolist()
        for positions in torch.arange(start, end).split(limit) if end > start else ():
            part = replace(batch.select(rows[positions] - first), rows=positions)
            last = gathered[-1] if gathered else None
            if last is not None and len(last) + len(part) <= limit and last.alike(part):
                gathered[-1] = last.joined(part)
            else:
                gathered.append(replace(part, index=len(gathered)))
    return gathered
