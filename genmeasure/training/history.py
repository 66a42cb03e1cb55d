"""What is known of each epoch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from genmeasure.training.loggers import finite


@dataclass(frozen=True)
class Epoch:
    """One epoch; numbers count from 1, labels are the given ones, losses are in nats.

    training_loss: mean of the algorithm's loss over the examples of the epoch, without penalty, in training mode and
    while the weights move. validation_loss, validation_error: cross-entropy and fraction of wrong labels in evaluation
    mode at the end of the epoch; nan without validation data. learning_rate: of its last step. seconds: wall clock.
    """

    number: int
    training_loss: float
    validation_loss: float
    validation_error: float
    learning_rate: float
    seconds: float

    def record(self) -> dict[str, Any]:
        """For JSON, with None in place of nan."""
        return finite(asdict(self))

    @classmethod
    def of(cls, record: dict[str, Any]) -> Epoch:
        return cls(**{name: float("nan") if value is None else value for name, value in record.items()})
