"""The exponentially weighted mean of the weights after every step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from genmeasure.errors import InputError
from genmeasure.training.averages.running import RunningAverage
from genmeasure.training.context import Context
from genmeasure.training.pieces import Average, Recipe


@dataclass(frozen=True)
class ExponentialMovingAverage(Recipe[Average]):
    """A_t = d_t A_{t-1} + (1 - d_t) W_t after step t = 1, 2, … (Polyak, Juditsky 1992; the form of Tarvainen,
    Valpola 2017, arXiv:1703.01780, section 2).

    decay: d, from 0 up to but not 1. bias_correction: d_t = 1 - (1 - d)/(1 - d^t), by which A_t is the mean of
    W_1, …, W_t with the weights d^(t-s), as in Adam (Kingma, Ba 2015, arXiv:1412.6980, section 3); otherwise d_t = d
    with A_1 = W_1, whose share of the average is then d^(t-1).
    """

    decay: float = 0.999
    bias_correction: bool = True

    def __post_init__(self):
        if not 0 <= self.decay < 1:
            raise InputError(f"decay={self.decay} came; it must be at least 0 and below 1")

    def prepare(self, context: Context) -> StepAverage:
        return StepAverage(self.decay, self.bias_correction)


class StepAverage(RunningAverage):
    """`ExponentialMovingAverage`, with its memory."""

    def __init__(self, decay: float, bias_correction: bool = True):
        super().__init__()
        self.decay, self.bias_correction = decay, bias_correction

    def after_step(self, model: nn.Module, epoch: int) -> None:
        decay = self.decay
        if self.bias_correction:
            decay = 1 - (1 - decay) / (1 - decay ** (self.count + 1))
        self.include(model, get_ema_multi_avg_fn(max(0.0, decay)))
