"""How an algorithm is run: everything that does not tell fine-tuning methods apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from genmeasure.errors import InputError, unknown
from genmeasure.training.augmentation import AUGMENTATIONS
from genmeasure.training.optimizers import OPTIMIZERS
from genmeasure.training.pieces import Selection
from genmeasure.training.precision import PRECISIONS
from genmeasure.training.schedules import SCHEDULES
from genmeasure.training.selection import CRITERIA, BestValidation, LastEpoch

if TYPE_CHECKING:
    from genmeasure.training.history import Epoch

UNITS = ("epoch", "step")
AT_LEAST_ONE = ("epochs", "batch_size", "step_epochs", "accumulate")
AT_LEAST_ZERO = ("learning_rate", "head_factor", "weight_decay", "momentum", "warm_up", "final_factor", "step_factor")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an algorithm is run.

    learning_rate: the largest, at least 0. head_factor: times which it is for the head. batch_size: examples per step.
    optimizer: "adam", "amsgrad", "adamw", "nadam", "radam", "rmsprop", "sgd" or "nesterov". momentum: of the last
    three. betas, epsilon: of Adam and its kin (and epsilon of "rmsprop"). weight_decay: decoupled for "adamw", else
    added to the gradient.
    schedule: "constant", "cosine" or "linear" (down to final_factor times the learning rate over the epochs), "step"
    (times step_factor every step_epochs), or "plateau" (times step_factor when more than step_epochs epochs brought no
    better validation figure). schedule_by: whether it changes by "epoch" or by "step". warm_up: epochs, not
    necessarily whole, in which the learning rate rises linearly before the schedule begins.
    clip: upper limit of the gradient's Euclidean norm, over all weights and with the penalty; None does not clip.
    accumulate: parts of about the same size in which each batch is carried through the network, to save memory;
    normalisation layers see each part by itself. precision: of the network's passes in training, "float32",
    "bfloat16" or "float16" (`torch.autocast`; weights and gradients keep their type).
    augment: what is drawn anew for every image in every step: "none", "crop" (moved by up to an eighth of its sides, or
    by one pixel), "flip" (left and right exchanged) or "crop-flip".
    select: the epoch to return unless the algorithm has a rule of its own: "last", or the one with the best
    validation "loss" or "error". patience: then ends training after so many epochs without a new best.
    seed: of the order of examples, dropout and every draw. device: "auto", "cpu", "cuda", "cuda:1" or "mps".
    """

    epochs: int = 30
    learning_rate: float = 1e-3
    head_factor: float = 1.0
    batch_size: int = 32
    optimizer: str = "adam"
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    schedule: str = "constant"
    schedule_by: str = "epoch"
    warm_up: float = 0.0
    step_epochs: int = 10
    step_factor: float = 0.1
    final_factor: float = 0.0
    clip: float | None = None
    accumulate: int = 1
    precision: str = "float32"
    augment: str = "none"
    select: str = "last"
    patience: int | None = None
    seed: int = 0
    device: str = "auto"

    def __post_init__(self):
        object.__setattr__(self, "betas", tuple(self.betas))
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} came; it must be at least 1")
        for name in AT_LEAST_ZERO:
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}={getattr(self, name)} came; it must be at least 0")
        for what, name, known in (
                ("optimizer", self.optimizer, OPTIMIZERS), ("schedule", self.schedule, SCHEDULES),
                ("unit of the schedule", self.schedule_by, UNITS), ("precision", self.precision, PRECISIONS),
                ("augmentation", self.augment, AUGMENTATIONS),
                ("selection", self.select, ("last", *CRITERIA))):
            if name not in known:
                raise unknown(what, name, known)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas={self.betas} came; they must be two numbers, at least 0 and below 1")
        if not self.epsilon > 0:
            raise InputError(f"epsilon={self.epsilon} came; it must be above 0")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip={self.clip} came; the norm must be above 0, or None for no limit")
        if self.warm_up >= self.epochs:
            raise InputError(f"warm_up={self.warm_up} came with epochs={self.epochs}; the warm-up must be shorter than "
                             "training")
        if self.optimizer == "nesterov" and self.momentum == 0:
            raise InputError("optimizer='nesterov' came with momentum=0; it must be above 0, or use optimizer='sgd'")
        if self.patience is not None and self.select == "last":
            raise InputError(f"patience={self.patience} came with select='last'; patience goes with select='loss' or "
                             "select='error'")

    @property
    def selection(self) -> Selection:
        return LastEpoch() if self.select == "last" else BestValidation(self.select, self.patience)

    def figure(self, epoch: Epoch) -> float:
        """The validation figure that epochs are compared by."""
        return getattr(epoch, CRITERIA["loss" if self.select == "last" else self.select])
