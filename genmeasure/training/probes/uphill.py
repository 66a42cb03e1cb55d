"""The gradient one step uphill (SAM)."""

from __future__ import annotations

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
        if not self.rho >= 0:
            raise InputError(f"rho={self.rho} came; the length of the perturbation must be at least 0")

    def gradient(self, model: nn.Module, objective: Objective, generator: Generator | None) -> Tensor:
        value = objective.gradient()
        reached = [p for p in model.parameters() if p.grad is not None]
        offsets = ascent([p.grad for p in reached], self.rho)
        model.zero_grad(set_to_none=True)
        with perturbed(reached, offsets), frozen_statistics(model):
            objective.gradient()
        return value


def ascent(gradients: list[Tensor], rho: float) -> list[Tensor]:
    """rho g/‖g‖_2 with one norm over all tensors; zero where the gradient is zero."""
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    factor = torch.where(norm > 0, rho / norm, 0.0)
    return [g * factor for g in gradients]
