"""The gradient one step uphill, uphill as seen from randomly moved weights (random SAM)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor, nn

from genmeasure.errors import InputError
from genmeasure.training.perturbed import perturbed
from genmeasure.training.pieces import Objective, Probe
from genmeasure.training.probes.distributions import standard_noise
from genmeasure.training.probes.noise import trainable
from genmeasure.training.probes.uphill import ascent, check_rho, taken
from genmeasure.training.statistics import frozen_statistics, has_statistics


@dataclass(frozen=True)
class RandomUphill(Probe):
    """The gradient at w + e, e = rho h/‖h‖_2, where h is the gradient at w + U, U ~ N(0, sigma² I).

    Random sharpness-aware minimisation (Liu et al. 2022, "Random Sharpness-Aware Minimization"), in the form of the
    public code of arXiv:2306.08553 without its defects: that one divides by a sum of norms of noise and gradient,
    tensor by tensor, and leaves the weights uphill. rho: length of the step, sigma: standard deviation, both in units
    of weight and at least 0. The returned loss is that at w + U. Running statistics belong to w: a model that has them
    costs one more forward pass per step.
    """

    rho: float = 0.05
    sigma: float = 0.01
    passes = 2

    def __post_init__(self):
        check_rho(self.rho)
        if not self.sigma >= 0:
            raise InputError(f"sigma={self.sigma} came; a standard deviation must be at least 0")

    def gradient(self, model: nn.Module, objective: Objective, generator: Generator | None) -> Tensor:
        parameters = trainable(model)
        noise = standard_noise(parameters, "normal", generator)
        if has_statistics(model):
            objective.value()
        with frozen_statistics(model):
            with perturbed(parameters, noise, self.sigma):
                value = objective.gradient()
            reached, gradients = taken(model)
            with perturbed(reached, ascent(gradients, self.rho)):
                objective.gradient()
        return value
