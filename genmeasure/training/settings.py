"""How an algorithm is run: everything that does not tell fine-tuning methods apart."""

from __future__ import annotations

from dataclasses import dataclass

from genmeasure.errors import InputError, unknown
from genmeasure.training.optimizers import OPTIMIZERS, SCHEDULES
from genmeasure.training.pieces import Selection
from genmeasure.training.selection import CRITERIA, BestValidation, LastEpoch


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an algorithm is run.

    learning_rate: of the first epoch, at least 0. batch_size: examples per step. optimizer: "adam", "amsgrad",
    "adamw" or "sgd". momentum: for "sgd". weight_decay: decoupled for "adamw", else added to the gradient.
    schedule: "constant", "cosine" (to zero over the epochs) or "step" (times step_factor every step_epochs).
    select: the epoch to return unless the algorithm has a rule of its own: "last", or the one with the best
    validation "loss" or "error". patience: then ends training after so many epochs without a new best.
    seed: of the order of examples, dropout and every draw. device: "auto", "cpu", "cuda", "cuda:1" or "mps".
    """

    epochs: int = 30
    learning_rate: float = 1e-3
    batch_size: int = 32
    optimizer: str = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    step_epochs: int = 10
    step_factor: float = 0.1
    select: str = "last"
    patience: int | None = None
    seed: int = 0
    device: str = "auto"

    def __post_init__(self):
        for name in ("epochs", "batch_size", "step_epochs"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} came; it must be at least 1")
        for name in ("learning_rate", "weight_decay", "momentum"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}={getattr(self, name)} came; it must be at least 0")
        for what, name, known in (("optimizer", self.optimizer, OPTIMIZERS), ("schedule", self.schedule, SCHEDULES),
                                  ("selection", self.select, ("last", *CRITERIA))):
            if name not in known:
                raise unknown(what, name, known)
        if self.patience is not None and self.select == "last":
            raise InputError(f"patience={self.patience} came with select='last'; patience goes with select='loss' or "
                             "select='error'")

    @property
    def selection(self) -> Selection:
        return LastEpoch() if self.select == "last" else BestValidation(self.select, self.patience)
