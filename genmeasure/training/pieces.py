"""What the pieces of a fine-tuning algorithm promise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import Generator, Tensor, nn

from genmeasure.data.batches import Batch

if TYPE_CHECKING:
    from genmeasure.training.context import Context
    from genmeasure.training.loop import Epoch

P = TypeVar("P")


class Recipe(ABC, Generic[P]):
    """Parameters of a piece that still needs the facts of a run (start weights, head, classes, confusion matrix)."""

    @abstractmethod
    def prepare(self, context: Context) -> P:
        """The piece, ready to be called in this run; raises `InputError` when the run lacks a fact."""


class Piece:
    """A piece that is ready to be called."""

    def prepare(self, context: Context):
        return self


class Probe(Piece, ABC):
    """Where the gradient of a step is taken."""

    @property
    @abstractmethod
    def passes(self) -> int:
        """Forward-backward passes per step."""

    @abstractmethod
    def __call__(self, model: nn.Module, loss: Callable[[], Tensor], generator: Generator | None = None) -> Tensor:
        """Set the `.grad` of every trainable parameter (what was there is dropped) and return the loss, detached.

        loss: computes the mean loss of one minibatch, a scalar with a graph, at the model's current weights; it may be
        called several times. generator: source of the draws, on the parameters' device. Weights and running statistics
        of normalisation layers are afterwards as after one plain forward pass.
        """


class TrainLoss(Piece, ABC):
    """What is minimised, per example."""

    def draw(self, batch: Batch, generator: Generator | None = None) -> Batch:
        """What is drawn anew once per step, before all of its passes."""
        return batch

    @abstractmethod
    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Outputs [batch, classes] and the targets of a drawn batch -> losses [batch], in nats."""


class Penalty(Piece, ABC):
    """What is added to the loss. It is taken at the weights themselves, not where the probe looks."""

    @abstractmethod
    def __call__(self, model: nn.Module) -> Tensor:
        """A differentiable scalar."""


class Constraint(Piece, ABC):
    """What is enforced after every step."""

    @abstractmethod
    def __call__(self, model: nn.Module) -> None:
        """Project the model's weights in place; a second call changes nothing."""


class Selection(Piece, ABC):
    """Which epoch's weights are returned, and when training ends early. Epochs count from 1."""

    uses_validation: bool

    @abstractmethod
    def chosen(self, history: Sequence[Epoch]) -> int:
        """The number of the epoch to return if training ended now."""

    def stop(self, history: Sequence[Epoch]) -> bool:
        return False
