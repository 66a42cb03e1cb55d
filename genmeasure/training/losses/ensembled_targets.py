"""For every training example a running average of what was predicted for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from genmeasure.data.batches import Batch
from genmeasure.errors import InputError


class EnsembledTargets:
    """Soft labels t [n, k], t <- momentum t + (1 - momentum) p once per step for the examples of that step.

    p are the probabilities of the first pass of the step, whatever probe makes it. With several processes, each one
    remembers the examples that it saw.
    """

    def __init__(self, targets: Tensor, momentum: float):
        if not 0 <= momentum <= 1:
            raise InputError(f"momentum={momentum} came; it must lie between 0 and 1")
        self.targets, self.momentum = targets, momentum
        self._due = torch.zeros(len(targets), dtype=torch.bool, device=targets.device)

    def drawn(self, batch: Batch) -> Batch:
        """The batch with targets [batch, 2], label and row; its rows may be updated once."""
        rows = rows_of(batch).to(self.targets.device)
        self._due[rows] = True
        return replace(batch, targets=torch.stack([batch.targets, rows.to(batch.targets)], 1))

    @torch.no_grad()
    def updated(self, rows: Tensor, probabilities: Tensor) -> Tensor:
        """t [batch, k] at the rows, after the update of those that are due."""
        due = rows[self._due[rows]]
        fresh = probabilities[self._due[rows]].to(self.targets)
        self.targets[due] = self.momentum * self.targets[due] + (1 - self.momentum) * fresh
        self._due[due] = False
        return self.targets[rows]

    def state(self) -> dict[str, Tensor]:
        return {"targets": self.targets.clone()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.targets.copy_(state["targets"])


def precise(dtype: torch.dtype) -> torch.dtype:
    """A floating-point type with at least the precision of float32, in which small updates are not lost."""
    return torch.promote_types(dtype, torch.float32)


def rows_of(batch: Batch) -> Tensor:
    """The positions of the batch's examples in the training data; `InputError` where they are not known."""
    if batch.rows is None:
        raise InputError("a batch came without the rows of its examples; a loss that remembers examples needs "
                         "Batch(…, rows=…), their positions in the training data")
    return batch.rows
