"""Losses and gradients at the weights, uphill of them and downhill of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genmeasure.training.perturbed import perturbed
from genmeasure.training.pieces import Objective
from genmeasure.training.probes.uphill import ascent, taken
from genmeasure.training.randomness import rewinder
from genmeasure.training.statistics import frozen_statistics


@dataclass(frozen=True, eq=False)
class BothWays:
    """Losses L(w), L(w+e), L(w-e), and for each parameter that the loss reaches its gradients there, in this order."""

    here: Tensor
    up: Tensor
    down: Tensor
    gradients: dict[nn.Parameter, tuple[Tensor, Tensor, Tensor]]

    @torch.no_grad()
    def combine(self, here: float | Tensor, up: float | Tensor, down: float | Tensor) -> None:
        """Set every `.grad` to the sum of the three gradients with these weights."""
        for p, (at, above, below) in self.gradients.items():
            p.grad = here * at + up * above + down * below


def both_ways(model: nn.Module, objective: Objective, rho: float) -> BothWays:
    """e = rho g/‖g‖_2, g the gradient at w. Leaves no `.grad` behind. Running statistics are updated in the first pass
    only; all passes repeat the same dropout."""
    rewind = rewinder(next(model.parameters()).device)
    values = [objective.gradient()]
    reached, at = taken(model)
    found, offsets = [at], ascent(at, rho)
    for sign in (1.0, -1.0):
        rewind()
        with perturbed(reached, offsets, sign), frozen_statistics(model):
            values.append(objective.gradient())
        found.append(taken(model)[1])
    return BothWays(*values, dict(zip(reached, zip(*found, strict=True), strict=True)))
