"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn, optim

from genmeasure.training.context import Context

if TYPE_CHECKING:
    from genmeasure.training.settings import Settings

Parameters = Sequence[nn.Parameter] | Sequence[dict[str, Any]]
"""Parameters, or groups of them as `torch.optim` takes them."""


def _adaptive(kind: type[optim.Optimizer], **more: Any) -> Callable[[Parameters, Settings], optim.Optimizer]:
    """For optimizers with the moving averages of Adam."""
    def build(parameters: Parameters, settings: Settings) -> optim.Optimizer:
        return kind(parameters, lr=settings.learning_rate, betas=settings.betas, eps=settings.epsilon,
                    weight_decay=settings.weight_decay, **more)
    return build


def _sgd(parameters: Parameters, settings: Settings) -> optim.Optimizer:
    return optim.SGD(parameters, lr=settings.learning_rate, momentum=settings.momentum,
                     weight_decay=settings.weight_decay)


def _nesterov(parameters: Parameters, settings: Settings) -> optim.Optimizer:
    return optim.SGD(parameters, lr=settings.learning_rate, momentum=settings.momentum,
                     weight_decay=settings.weight_decay, nesterov=True)


def _rmsprop(parameters: Parameters, settings: Settings) -> optim.Optimizer:
    return optim.RMSprop(parameters, lr=settings.learning_rate, momentum=settings.momentum, eps=settings.epsilon,
                         weight_decay=settings.weight_decay)


OPTIMIZERS: dict[str, Callable[[Parameters, Settings], optim.Optimizer]] = {
    "adam": _adaptive(optim.Adam), "amsgrad": _adaptive(optim.Adam, amsgrad=True), "adamw": _adaptive(optim.AdamW),
    "nadam": _adaptive(optim.NAdam), "radam": _adaptive(optim.RAdam), "rmsprop": _rmsprop, "sgd": _sgd,
    "nesterov": _nesterov}


def build_optimizer(model: nn.Module, context: Context, settings: Settings) -> optim.Optimizer:
    """For the model's trainable parameters. Each group has a "factor" on the learning rate, which is not 1 for the
    head where the settings say so."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            groups.setdefault(settings.head_factor if context.in_head(name) else 1.0, []).append(p)
    return OPTIMIZERS[settings.optimizer]([{"params": some, "factor": factor} for factor, some in groups.items()],
                                          settings)
