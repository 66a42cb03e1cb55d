"""Batches in a fixed order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from genmeasure.errors import InputError

LABEL_KEYS = ("labels", "label", "targets", "target", "y")
DEFAULT_BATCH_SIZE = 64


def _each(inputs: Any, f):
    if isinstance(inputs, Tensor):
        return f(inputs)
    if isinstance(inputs, Mapping):
        return {k: _each(v, f) for k, v in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(_each(v, f) for v in inputs)
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
        """From what a user's loader yields: (x, y), (x, y, clean), a mapping with a label key, or a `Batch`."""
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
            return cls(inputs, targets, None if clean is None else torch.as_tensor(clean), index)
        if isinstance(batch, (tuple, list)) and len(batch) in (2, 3):
            x, y, *rest = batch
            x = tuple(x) if isinstance(x, (tuple, list)) else x if isinstance(x, Mapping) else (torch.as_tensor(x),)
            return cls(x, torch.as_tensor(y), torch.as_tensor(rest[0]) if rest else None, index)
        raise InputError(f"a batch of type {type(batch).__name__} came; expected (inputs, labels), "
                         "(inputs, labels, clean labels) or a mapping with the key 'labels'")

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Batch:
        """Move; floating-point tensors take the parameters' dtype."""
        def move(t: Tensor) -> Tensor:
            return t.to(device=device, dtype=dtype if t.is_floating_point() else None)
        return replace(self, inputs=_each(self.inputs, move), targets=move(self.targets),
                       clean=None if self.clean is None else move(self.clean))

    def select(self, rows: slice | Tensor) -> Batch:
        """Some of the examples."""
        return replace(self, inputs=_each(self.inputs, lambda t: t[rows]), targets=self.targets[rows],
                       clean=None if self.clean is None else self.clean[rows])

    def tensors(self) -> list[Tensor]:
        found: list[Tensor] = []
        _each(self.inputs, found.append)
        return [*found, self.targets] + ([] if self.clean is None else [self.clean])

    def digest(self) -> str:
        """A hash of every tensor in the batch, its dtype and shape included."""
        h = hashlib.sha256()
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
        if len(whole.inputs[0]) != len(whole.targets):
            raise InputError(f"{len(whole.inputs[0])} inputs and {len(whole.targets)} labels came for {name!r}; "
                             "there must be one label for each input")
        return cls([whole.select(slice(i, i + batch_size)) for i in range(0, len(whole), batch_size)], name)

    def __iter__(self) -> Iterator[Batch]:
        for index, batch in enumerate(self._source):
            yield Batch.of(batch, index)

    def __len__(self) -> int:
        return self.count
