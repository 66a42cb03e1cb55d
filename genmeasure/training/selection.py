"""Which epoch's weights are returned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from genmeasure.errors import InputError, unknown
from genmeasure.training.pieces import Selection

if TYPE_CHECKING:
    from genmeasure.training.history import Epoch

CRITERIA = {"loss": "validation_loss", "error": "validation_error"}


@dataclass(frozen=True)
class LastEpoch(Selection):
    """The last epoch, whatever its validation figures."""

    uses_validation = False

    def chosen(self, history: Sequence[Epoch]) -> int:
        return history[-1].number


@dataclass(frozen=True)
class BestValidation(Selection):
    """The epoch with the smallest validation figure, the earliest among equals.

    by: "loss" or "error". patience: training ends after so many epochs without a new best; None never ends it early.
    """

    by: str = "loss"
    patience: int | None = None
    uses_validation = True

    def __post_init__(self):
        if self.by not in CRITERIA:
            raise unknown("validation criterion", self.by, CRITERIA)
        if self.patience is not None and self.patience < 1:
            raise InputError(f"the patience {self.patience} came; it must be at least 1 epoch")

    def chosen(self, history: Sequence[Epoch]) -> int:
        def figure(epoch: Epoch) -> float:
            value = getattr(epoch, CRITERIA[self.by])
            return value if math.isfinite(value) else math.inf
        return min(history, key=figure).number

    def stop(self, history: Sequence[Epoch]) -> bool:
        return self.patience is not None and history[-1].number - self.chosen(history) >= self.patience
