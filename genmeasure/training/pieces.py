"""What the pieces of a fine-tuning algorithm promise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import Generator, Tensor, nn

from genmeasure.data.batches import Batch

if TYPE_CHECKING:
    from genmeasure.training.context import Context
    from genmeasure.training.history import Epoch

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

    def begin_epoch(self, number: int, predict: Callable[[], Tensor]) -> None:
        """Called before the epoch with this number, from 1. predict: the model's outputs [n, classes] on all training
        examples, in their order, in evaluation mode; computed when called."""

    def report(self) -> list[dict[str, Any]]:
        """What the piece did in the run, or applies to, one row each: numbers and text."""
        return []

    def state(self) -> dict[str, Tensor]:
        """What must be remembered between steps, so that a run can be resumed; tensors by name."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` returned, after `prepare`, each tensor on the device where it was. In a run that goes on
        in the middle of an epoch, `begin_epoch` comes once more before this."""


class Objective(ABC):
    """The mean loss of one minibatch at the model's current weights, as often as it is asked for."""

    @abstractmethod
    def graph(self) -> Tensor:
        """The loss, a scalar with a graph."""

    def value(self) -> Tensor:
        """The loss without a graph."""
        with torch.no_grad():
            return self.graph()

    def gradient(self, weight: float = 1.0) -> Tensor:
        """Add `weight` times the gradient to every `.grad` and return the loss, detached."""
        value = self.graph()
        (value if weight == 1 else weight * value).backward()
        return value.detach()


class Closure(Objective):
    """An objective from a function that returns the mean loss with a graph."""

    def __init__(self, loss: Callable[[], Tensor]):
        self.loss = loss

    def graph(self) -> Tensor:
        return self.loss()


class Probe(Piece, ABC):
    """Where the gradient of a step is taken."""

    @property
    @abstractmethod
    def passes(self) -> float:
        """Forward-backward passes per step; a forward pass alone is a third."""

    def __call__(self, model: nn.Module, loss: Objective | Callable[[], Tensor],
                 generator: Generator | None = None) -> Tensor:
        """Set the `.grad` of every trainable parameter (what was there is dropped) and return the loss, detached.

        loss: of one minibatch; or a function that returns its mean loss with a graph, at the model's current weights,
        each time it is called. generator: source of the draws, on the parameters' device. Weights and running
        statistics of normalisation layers are afterwards as after one plain forward pass.
        """
        model.zero_grad(set_to_none=True)
        return self.gradient(model, loss if isinstance(loss, Objective) else Closure(loss), generator)

    @abstractmethod
    def gradient(self, model: nn.Module, objective: Objective, generator: Generator | None) -> Tensor:
        """As `__call__`, with every `.grad` None at the beginning."""


class TrainLoss(Piece, ABC):
    """What is minimised, per example.

    passes: forward-backward passes per step that `draw` takes, beyond those of the probe; a forward pass alone is a
    third. divisible: False where an example's loss depends on others of its minibatch, or on those that this process
    saw before, so that a minibatch can be cut neither into parts nor among processes.
    """

    passes: ClassVar[float] = 0
    divisible: bool = True

    def draw(self, batch: Batch, generator: Generator | None = None, model: nn.Module | None = None) -> Batch:
        """What is drawn anew once per step, before all of its passes. generator: on the CPU. model: as it is before
        the step, in training mode. `batch.rows` are the examples' positions in the training data."""
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


class Average(Piece, ABC):
    """Which average of the weights along the way is evaluated and returned in place of the last ones."""

    def after_step(self, model: nn.Module, epoch: int) -> None:
        """Called after every step (and constraint) of the epoch with this number, from 1."""

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        """Called after the last step of every epoch."""

    def learning_rate(self, epoch: int) -> float | None:
        """In place of the schedule's; None keeps the schedule's."""
        return None

    @abstractmethod
    def weights(self) -> Mapping[str, Tensor] | None:
        """The averaged parameters by name, or None as long as nothing was averaged. The running statistics of
        normalisation layers are computed anew for them from the training data."""


class Adapter(Piece, ABC):
    """Which weights are trained in place of the model's own."""

    @abstractmethod
    def attach(self, model: nn.Module, generator: Generator) -> None:
        """Put trainable factors on the model's weights and freeze the weights; the outputs stay the same. Until `merge`
        the modules' attributes, such as `weight`, are the weights with the factors folded in."""

    @abstractmethod
    def merge(self, model: nn.Module) -> None:
        """Fold the factors into the weights: the model has its old parameter names and `requires_grad` again."""


class Selection(Piece, ABC):
    """Which epoch's weights are returned, and when training ends early. Epochs count from 1."""

    uses_validation: bool

    @abstractmethod
    def chosen(self, history: Sequence[Epoch]) -> int:
        """The number of the epoch to return if training ended now."""

    def stop(self, history: Sequence[Epoch]) -> bool:
        return False
