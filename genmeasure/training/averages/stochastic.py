"""The mean of the weights at the end of the later epochs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.optim.swa_utils import get_swa_multi_avg_fn

from genmeasure.errors import InputError
from genmeasure.training.averages.running import RunningAverage
from genmeasure.training.context import Context
from genmeasure.training.pieces import Average, Recipe


@dataclass(frozen=True)
class StochasticWeightAveraging(Recipe[Average]):
    """The mean of the weights after each of the epochs begin, begin + 1, … (Izmailov et al. 2018, arXiv:1803.05407,
    Algorithm 1).

    begin: number of the first epoch that counts, from 1; None begins when two thirds of the epochs are over.
    learning_rate: from that epoch on, at least 0; None keeps the schedule's.
    """

    begin: int | None = None
    learning_rate: float | None = None

    def __post_init__(self):
        if self.begin is not None and self.begin < 1:
            raise InputError(f"begin={self.begin} came; epochs count from 1")
        if self.learning_rate is not None and not self.learning_rate >= 0:
            raise InputError(f"learning_rate={self.learning_rate} came; it must be at least 0")

    def prepare(self, context: Context) -> EpochMean:
        """Raises `InputError` when no epoch would count."""
        if self.begin is None and context.epochs is None:
            raise InputError("begin=None came for a run whose number of epochs is not known; give the number of the "
                             "first epoch to be averaged")
        begin = self.begin if self.begin is not None else max(1, round(2 * context.epochs / 3))
        if context.epochs is not None and begin > context.epochs:
            raise InputError(f"begin={begin} came for a run of {context.epochs} epochs, none of which would be "
                             "averaged; begin earlier or train longer")
        return EpochMean(begin, self.learning_rate)


class EpochMean(RunningAverage):
    """`StochasticWeightAveraging` for a known first epoch."""

    def __init__(self, begin: int, rate: float | None = None):
        super().__init__()
        self.begin, self.rate = begin, rate

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        if epoch >= self.begin:
            self.include(model, get_swa_multi_avg_fn())

    def learning_rate(self, epoch: int) -> float | None:
        return self.rate if epoch >= self.begin else None
