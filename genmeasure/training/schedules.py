"""Schedules of the learning rate by name: functions of how far training has come, without a memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import nn, optim

if TYPE_CHECKING:
    from genmeasure.training.history import Epoch
    from genmeasure.training.settings import Settings


def _constant(done: float, of: float, settings: Settings) -> float:
    return 1.0


def _cosine(done: float, of: float, settings: Settings) -> float:
    return settings.final_factor + (1 - settings.final_factor) * 0.5 * (1 + math.cos(math.pi * done / of))


def _linear(done: float, of: float, settings: Settings) -> float:
    return 1 - (1 - settings.final_factor) * done / of


def _step(done: float, of: float, settings: Settings) -> float:
    return settings.step_factor ** math.floor(done / settings.step_epochs + 1e-9)


SCHEDULES: dict[str, Callable[[float, float, Settings], float]] = {
    "constant": _constant, "cosine": _cosine, "linear": _linear, "step": _step, "plateau": _constant}
"""(epochs done, epochs in all, both since the end of the warm-up; settings) -> factor on the learning rate."""


def learning_rate(epoch: int, settings: Settings, *, step: int = 0, steps: int = 1,
                  history: Sequence[Epoch] = ()) -> float:
    """In one step. epoch: its number, from 1. step: its number in the epoch, from 0, of so many steps.

    history: the epochs before this one, of which "plateau" takes the validation figures.
    """
    unit = 1.0 if settings.schedule_by == "epoch" else 1 / steps
    done = epoch - 1 if settings.schedule_by == "epoch" else epoch - 1 + step / steps
    if done < settings.warm_up:
        return settings.learning_rate * (done + unit) / (settings.warm_up + unit)
    factor = SCHEDULES[settings.schedule](done - settings.warm_up, settings.epochs - settings.warm_up, settings)
    if settings.schedule == "plateau":
        factor *= _plateau(history, settings)
    return settings.learning_rate * factor


def _plateau(history: Sequence[Epoch], settings: Settings) -> float:
    """What torch's `ReduceLROnPlateau` makes of a learning rate of 1 over these epochs."""
    optimizer = optim.SGD([nn.Parameter()], lr=1.0)
    scheduler = optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=settings.step_factor, eps=0.0,
                                                     patience=settings.step_epochs)
    for epoch in history[math.floor(settings.warm_up):]:
        scheduler.step(settings.figure(epoch))
    return optimizer.param_groups[0]["lr"]
