"""The mean gradient over randomly moved weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Generator, Tensor, nn

from genmeasure.errors import InputError, unknown
from genmeasure.training.perturbed import perturbed
from genmeasure.training.pieces import Objective, Probe
from genmeasure.training.probes.distributions import check_distribution, standard_noise
from genmeasure.training.statistics import adopt_mean, frozen_statistics, has_statistics

STATISTICS = ("clean", "moved")


@dataclass(frozen=True)
class Noise(Probe):
    """lam grad f(W) + (1 - lam) times the mean of the gradients at W + U_j, j = 1..draws, over all trainable weights.

    sigma: standard deviation of the noise U_j, in units of weight, at least 0. draws: k of the paper. two_point: take
    W - U_j as well, which cancels the noise that is linear in U (noise stability optimisation: Zhang, Li, Ju 2024,
    arXiv:2306.08553, Algorithm 1). lam: weight of the clean gradient, 0 (the paper's algorithm, no clean pass is made)
    up to below 1; as in the paper's public code. distribution: "normal", "laplace", "uniform", "binomial" or
    "rademacher", all with mean 0 and standard deviation sigma.
    statistics: with lam = 0, running statistics are "clean", those of W, for which a model that has them pays one more
    forward pass per step, or "moved": those of the pass at W + U_1, or with two_point the mean of those at W + U_1 and
    W - U_1, which differ from those of W in the second order of U alone. The returned loss has the same weights as the
    gradient.
    """

    sigma: float = 0.01
    draws: int = 1
    two_point: bool = False
    lam: float = 0.0
    distribution: str = "normal"
    statistics: str = "clean"

    def __post_init__(self):
        if not self.sigma >= 0:
            raise InputError(f"sigma={self.sigma} came; a standard deviation must be at least 0")
        if self.draws < 1:
            raise InputError(f"draws={self.draws} came; at least 1 draw is needed for a gradient")
        if not 0 <= self.lam < 1:
            raise InputError(f"lam={self.lam} came; the weight of the clean gradient must be at least 0 and below 1, "
                             "or the gradients at moved weights would not count")
        check_distribution(self.distribution)
        if self.statistics not in STATISTICS:
            raise unknown("source of running statistics", self.statistics, STATISTICS)

    @property
    def passes(self) -> int:
        return self.draws * len(self.signs) + (self.lam > 0)

    @property
    def signs(self) -> tuple[float, ...]:
        return (1.0, -1.0) if self.two_point else (1.0,)

    def gradient(self, model: nn.Module, objective: Objective, generator: Generator | None) -> Tensor:
        parameters = trainable(model)
        noise = (standard_noise(parameters, self.distribution, generator) for _ in range(self.draws))
        return self.over(noise, self.sigma, model, objective)

    def over(self, noise: Iterable[Sequence[Tensor]], sigma: float, model: nn.Module, objective: Objective) -> Tensor:
        """`gradient` for given noise of standard deviation 1, `draws` times a list shaped like the trainable weights,
        and a standard deviation that may differ from the probe's."""
        parameters, total = trainable(model), 0.0
        if self.lam > 0:
            total = self.lam * objective.gradient(self.lam)
        elif self.statistics == "clean" and has_statistics(model):
            objective.value()
        update = self.lam == 0 and self.statistics == "moved"
        weight = (1 - self.lam) / (self.draws * len(self.signs))
        for offsets in noise:
            reached = []
            for sign in self.signs:
                with frozen_statistics(model) as copies, perturbed(parameters, offsets, sign * sigma):
                    total = total + weight * objective.gradient(weight)
                reached.append(copies)
            if update:
                adopt_mean(model, reached)
            update = False
        return total


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]
