"""A gradient estimated from losses alone (zeroth-order optimisation)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from genmeasure.errors import InputError
from genmeasure.training.perturbed import perturbed
from genmeasure.training.pieces import Objective, Probe
from genmeasure.training.probes.distributions import standard_noise
from genmeasure.training.probes.noise import trainable
from genmeasure.training.randomness import rewinder
from genmeasure.training.statistics import frozen_statistics, has_statistics


@dataclass(frozen=True)
class ValueDifferences(Probe):
    """The mean over j = 1..draws of (f(W + sigma u_j) - f(W - sigma u_j))/(2 sigma) u_j, u_j ~ N(0, I).

    Two-point zeroth-order gradient; its expectation is the gradient of E f(W + sigma u), that is of the loss plus
    sigma²/2 times its Hessian trace up to higher orders (Zhang et al. 2025, with lambda for sigma). Forward passes
    only, both of a pair with the same dropout. sigma: in units of weight, above 0. Every trainable weight gets a
    gradient, also where the loss does not depend on it: freeze such weights. The returned loss is the mean over the
    moved weights. Running statistics belong to W: a model that has them costs one more forward pass per step.
    """

    sigma: float = 0.002
    draws: int = 1

    def __post_init__(self):
        if not self.sigma > 0:
            raise InputError(f"sigma={self.sigma} came; the distance over which losses are compared must be above 0")
        if self.draws < 1:
            raise InputError(f"draws={self.draws} came; at least 1 draw is needed for a gradient")

    @property
    def passes(self) -> float:
        return 2 * self.draws / 3

    def gradient(self, model: nn.Module, objective: Objective, generator: Generator | None) -> Tensor:
        parameters = trainable(model)
        directions = (standard_noise(parameters, "normal", generator) for _ in range(self.draws))
        return self.along(directions, model, objective)

    @torch.no_grad()
    def along(self, directions: Iterable[Sequence[Tensor]], model: nn.Module, objective: Objective) -> Tensor:
        """`gradient` for given directions u_j, `draws` times a list shaped like the trainable weights."""
        if has_statistics(model):
            objective.value()
        parameters, total = trainable(model), 0.0
        for p in parameters:
            p.grad = torch.zeros_like(p)
        with frozen_statistics(model):
            for direction in directions:
                rewind = rewinder(parameters[0].device)
                with perturbed(parameters, direction, self.sigma):
                    above = objective.value()
                rewind()
                with perturbed(parameters, direction, -self.sigma):
                    below = objective.value()
                slope = (above - below) / (2 * self.sigma * self.draws)
                for p, u in zip(parameters, direction, strict=True):
                    p.grad += slope * u
                total = total + (above + below) / (2 * self.draws)
        return total
