"""Training data as one piece, cut anew into shuffled minibatches in every epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from genmeasure.data.batches import Batch, Batches
from genmeasure.errors import InputError


def whole(batches: Batches) -> Batch:
    """All examples of a data set as one batch; raises `InputError` when their shapes differ."""
    parts = list(batches)
    try:
        clean = None if parts[0].clean is None else torch.cat([part.clean for part in parts])
        return replace(parts[0], inputs=_joined([part.inputs for part in parts]),
                       targets=torch.cat([part.targets for part in parts]), clean=clean, index=0,
                       rows=torch.arange(batches.size))
    except RuntimeError as error:
        raise InputError(f"the batches of {batches.name!r} cannot be joined ({str(error).splitlines()[0]}); give all "
                         "examples the same shape, for texts by padding to one length") from error


def _joined(inputs: list[Any]) -> Any:
    first = inputs[0]
    if isinstance(first, Tensor):
        return torch.cat(inputs)
    if isinstance(first, Mapping):
        return {key: _joined([x[key] for x in inputs]) for key in first}
    if isinstance(first, (tuple, list)):
        return tuple(_joined(list(column)) for column in zip(*inputs, strict=True))
    return first


def shuffled_rows(examples: int, batch_size: int, generator: Generator) -> Iterator[Tensor]:
    """Row numbers of the minibatches of one epoch. A last minibatch of one example joins the one before it, because
    batch normalisation has no variance to divide by there."""
    order = torch.randperm(examples, generator=generator)
    ends = [*range(batch_size, examples, batch_size), examples]
    if len(ends) > 1 and batch_size > 1 and ends[-1] - ends[-2] == 1:
        del ends[-2]
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        yield order[begin:end]
