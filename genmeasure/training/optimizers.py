"""Optimizers and schedules by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn, optim

if TYPE_CHECKING:
    from genmeasure.training.settings import Settings


def _adam(parameters: list[nn.Parameter], settings: Settings) -> optim.Optimizer:
    return optim.Adam(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def _amsgrad(parameters: list[nn.Parameter], settings: Settings) -> optim.Optimizer:
    return optim.Adam(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, amsgrad=True)


def _adamw(parameters: list[nn.Parameter], settings: Settings) -> optim.Optimizer:
    return optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def _sgd(parameters: list[nn.Parameter], settings: Settings) -> optim.Optimizer:
    return optim.SGD(parameters, lr=settings.learning_rate, momentum=settings.momentum,
                     weight_decay=settings.weight_decay)


def _constant(epoch: int, settings: Settings) -> float:
    return 1.0


def _cosine(epoch: int, settings: Settings) -> float:
    return 0.5 * (1 + math.cos(math.pi * (epoch - 1) / settings.epochs))


def _step(epoch: int, settings: Settings) -> float:
    return settings.step_factor ** ((epoch - 1) // settings.step_epochs)


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], Settings], optim.Optimizer]] = {
    "adam": _adam, "amsgrad": _amsgrad, "adamw": _adamw, "sgd": _sgd}
SCHEDULES: dict[str, Callable[[int, Settings], float]] = {"constant": _constant, "cosine": _cosine, "step": _step}
"""Factor on the learning rate in an epoch; epochs count from 1."""


def learning_rate(epoch: int, settings: Settings) -> float:
    """In the epoch with this number, from 1."""
    return settings.learning_rate * SCHEDULES[settings.schedule](epoch, settings)
