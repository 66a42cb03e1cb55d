"""What fine-tuning moved: every number of the state that differs from the start, as coordinates for noise and codes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from genmeasure.bounds.inversions import code_length
from genmeasure.data.batches import Batch
from genmeasure.layers import BATCH_NORMS
from genmeasure.losses import zero_one
from genmeasure.risk import FORWARD
from genmeasure.subject import Subject


@dataclass(frozen=True)
class Moved:
    """A tensor of the state that differs from its start.

    path: in the state dict. start and end: coordinates, float64, of its shape. offset: None where the coordinates are
    the numbers themselves; for a BatchNorm's running variance its eps: they are ln(variance + eps), so that noise keeps
    it positive.
    """

    path: str
    start: Tensor
    end: Tensor
    offset: float | None = None

    @property
    def move(self) -> Tensor:
        return self.end - self.start

    def value(self, coordinates: Tensor, like: Tensor) -> Tensor:
        """The state's entry at these coordinates; a variance keeps a thousandth of eps above what would divide by 0."""
        if self.offset is not None:
            coordinates = (coordinates.exp() - self.offset).clamp(min=-0.999 * self.offset)
        return coordinates.to(like)


def moved(subject: Subject) -> tuple[list[Moved], int]:
    """What moved, and the number of all tensors of floating-point numbers, each of which may have moved.

    What the start lacks, as a new head, starts at zero. Computed once per subject.
    """
    return subject.remember("moved", lambda: _moved(subject))


def _moved(subject: Subject) -> tuple[list[Moved], int]:
    model, found, count = subject.model, [], 0
    offsets = {f"{name}.running_var": m.eps for name, m in model.named_modules() if isinstance(m, BATCH_NORMS)}
    kept = set(subject.state)
    for path, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if path not in kept or not tensor.is_floating_point():
            continue
        count += 1
        end = tensor.detach().double().cpu()
        start = subject.start[path].double().cpu() if path in subject.start else torch.zeros_like(end)
        if not torch.equal(start, end):
            offset = offsets.get(path)
            if offset is not None:
                start, end = (start + offset).log(), (end + offset).log()
            found.append(Moved(path, start, end, offset))
    return found, count


def choice_nats(tensors: int, choices: list[int], alphabet: int) -> float:
    """What it takes to say which of the tensors moved and one of `alphabet` choices for each that did."""
    moved_ones = [1] * len(choices) + [0] * (tensors - len(choices))
    return code_length(moved_ones, 2) + code_length(choices, alphabet, 1 / alphabet)


@torch.no_grad()
def errors(subject: Subject, state: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """0-1 errors [batch] of the model with these entries of its state replaced."""
    risk = subject.risk
    batch = risk.place(batch)
    risk.spend(FORWARD, len(batch))
    return zero_one(risk.outputs_of_state(state, batch).double(), batch.targets)


def first_batches(subject: Subject, examples: int) -> list[Batch]:
    """The first batches of the training data that hold at least `examples` examples, or all."""
    lengths = itertools.accumulate([0, *subject.train.lengths])
    return list(itertools.islice(subject.train, sum(before < examples for before in lengths)))
