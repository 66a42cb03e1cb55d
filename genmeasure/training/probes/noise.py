"""The mean gradient over randomly moved weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from genmeasure.errors import InputError
from genmeasure.training.perturbed import perturbed
from genmeasure.training.pieces import Objective, Probe
from genmeasure.training.statistics import frozen_statistics, has_statistics


@dataclass(frozen=True)
class Noise(Probe):
    """The mean of the gradients at W + U_j, U_j ~ N(0, sigma² I), j = 1..draws, over all trainable weights.

    sigma: standard deviation, in units of weight, at least 0. two_point: take W - U_j as well, which cancels the
    noise that is linear in U (noise stability optimisation: Zhang, Li, Ju 2024, arXiv:2306.08553, Algorithm 1).
    The returned loss is the mean over the moved weights. The gradient at W itself is not used; a model with running
    statistics costs one more forward pass per step, so that they belong to W.
    """

    sigma: float = 0.01
    draws: int = 1
    two_point: bool = False

    def __post_init__(self):
        if not self.sigma >= 0:
            raise InputError(f"sigma={self.sigma} came; a standard deviation must be at least 0")
        if self.draws < 1:
            raise InputError(f"draws={self.draws} came; at least 1 draw is needed for a gradient")

    @property
    def passes(self) -> int:
        return self.draws * (2 if self.two_point else 1)

    def gradient(self, model: nn.Module, objective: Objective, generator: Generator | None) -> Tensor:
        if has_statistics(model):
            objective.value()
        parameters = [p for p in model.parameters() if p.requires_grad]
        total = 0.0
        with frozen_statistics(model):
            for _ in range(self.draws):
                offsets = gaussian(parameters, self.sigma, generator)
                for sign in (1.0, -1.0) if self.two_point else (1.0,):
                    with perturbed(parameters, offsets, sign):
                        total = total + objective.gradient(1 / self.passes) / self.passes
        return total


def gaussian(parameters: list[Tensor], sigma: float, generator: Generator | None = None) -> list[Tensor]:
    """One draw from N(0, sigma² I), shaped like the parameters."""
    return [sigma * torch.randn(p.shape, generator=generator, dtype=p.dtype, device=p.device) for p in parameters]
