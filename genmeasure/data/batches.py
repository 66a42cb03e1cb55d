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
    index: position of the batch in its data set, so that draws can be tied to it.
    """

    inputs: tuple | dict
    targets: Tensor
    clean: Tensor | None = None
    index: int = 0

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
                       clean=None if self.clean is None else self.clean[rows])

    def tensors(self) -> list[Tensor]:
        """Every tensor: inputs (those of a mapping by sorted key), targets, clean targets."""
        found: list[Tensor] = []
        inputs = self.inputs
        map_tensors(dict(sorted(inputs.items())) if isinstance(inputs, dict) else inputs, found.append)
        return [*found, self.targets] + ([] if self.clean is None else [self.clean])

    def alike(self, other: Batch) -> bool:
        """Whether the examples of both have the same shapes."""
        return [t.shape[1:] for t in self.tensors()] == [t.shape[1:] for t in other.tensors()]

    def joined(self, other: Batch) -> Batch:
        """The examples of both."""
        mine, theirs = [], []
        map_tensors(self.inputs, mine.append)
        map_tensors(other.inputs, theirs.append)
        both = iter([torch.cat(pair) for pair in zip(mine, theirs, strict=True)])
        return replace(self, inputs=map_tensors(self.inputs, lambda t: next(both)),
                       targets=torch.cat([self.targets, other.targets]),
                       clean=None if self.clean is None else torch.cat([self.clean, other.clean]))

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
    """

    def __init__(self, source: Iterable, name: str = "data"):
        self.name = name
        self._source = tuple(source) if isinstance(source, Iterator) else source
        digests, labels, self.size = [], [], 0
        for batch in self:
            digests.append(batch.digest())
            labels.append(batch.targets)
            self.size += len(batch)
        if self.size == 0:
            raise InputError(f"the data set {name!r} is empty; at least one example is needed")
        if next(iter(self)).digest() != digests[0]:
            raise InputError(f"the data set {name!r} gave another first batch on a second pass; "
                             "measure on a loader with shuffle=False and without augmentation")
        self.count = len(digests)
        self.labels = torch.cat(labels)
        self.fingerprint = hashlib.sha256("".join(digests).encode()).hexdigest()

    @classmethod
    def from_arrays(cls, x: Any, y: Any, clean: Any = None, *, batch_size: int = DEFAULT_BATCH_SIZE,
                    name: str = "data") -> Batches:
        """Cut arrays x [n, ...], y [n] and clean [n] into batches, the last one possibly shorter."""
        whole = Batch.of((x, y) if clean is None else (x, y, clean))
        return cls([whole.select(slice(i, i + batch_size)) for i in range(0, len(whole), batch_size)], name)

    def take(self, rows: Tensor) -> list[Batch]:
        """The examples marked in `rows` [size], small batches joined where their shapes allow it."""
        limit = max(len(part) for part in rows.split([len(b) for b in self]))
        taken: list[Batch] = []
        start = 0
        for batch in self:
            wanted = rows[start:start + len(batch)].nonzero().squeeze(1)
            start += len(batch)
            if len(wanted):
                part = batch.select(wanted)
                if taken and len(taken[-1]) + len(part) <= limit and taken[-1].alike(part):
                    part = taken.pop().joined(part)
                taken.append(replace(part, index=len(taken)))
        return taken

    def __iter__(self) -> Iterator[Batch]:
        with torch.random.fork_rng(devices=[]):  # a DataLoader draws from the global generator when it starts
            source = iter(self._source)
        for index, batch in enumerate(source):
            yield Batch.of(batch, index)

    def __len__(self) -> int:
        return self.count
