"""The gradient one step uphill (SAM)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from genmeasure.errors import InputError
from genmeasure.training.perturbed import perturbed
from genmeasure.training.pieces import Objective, Probe
from genmeasure.training.statistics import frozen_statistics


@dataclass(frozen=True)
class Uphill(Probe):
    """The gradient at w + e, e = rho g/‖g‖_2, where g is the gradient at w.

    Sharpness-aware minimisation (Foret et al. 2021, arXiv:2010.01412, eq. 2 with p = 2). rho: length of the
    perturbation of all trainable weights together, in units of weight, at least 0. The returned loss is that at w.
    Running statistics are updated in the first pass only.
    """

    rho: float = 0.05
    passes = 2

    def __post_init__(self):
        check_rho(self.rho)

    def gradient(self, model: nn.Module, objective: Objective, generator: Generator | None) -> Tensor:
        return gradient_uphill(model, objective, lambda weights, gradients: ascent(gradients, self.rho))


def check_rho(rho: float) -> None:
    if not rho >= 0:
        raise InputError(f"rho={rho} came; the length of the perturbation must be at least 0")


def gradient_uphill(model: nn.Module, objective: Objective,
                    step: Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]) -> Tensor:
    """Fill `.grad` with the gradient at w + step(w, g), g the gradient at w; return the loss at w. The step gets the
    weights that the loss reaches and their gradients."""
    value = objective.gradient()
    reached, gradients = taken(model)
    with torch.no_grad():
        offsets = step(reached, gradients)
    with perturbed(reached, offsets), frozen_statistics(model):
        objective.gradient()
    return value


def taken(model: nn.Module) -> tuple[list[nn.Parameter], list[Tensor]]:
    """The parameters that have a gradient, and their gradients, which are removed from the model."""
    reached = [p for p in model.parameters() if p.grad is not None]
    gradients = [p.grad for p in reached]
    model.zero_grad(set_to_none=True)
    return reached, gradients


def ascent(gradients: Sequence[Tensor], rho: float) -> list[Tensor]:
    """rho g/‖g‖_2 with one norm over all tensors; zero where the gradient is zero."""
    factor = over_norm(rho, gradients)
    return [g * factor for g in gradients]


def over_norm(length: float, tensors: Sequence[Tensor]) -> Tensor:
    """length/‖tensors‖_2 with one norm over all of them; zero where they are zero."""
    norm = nn.utils.get_total_norm(tensors)
    return torch.where(norm > 0, length / norm, 0.0)
