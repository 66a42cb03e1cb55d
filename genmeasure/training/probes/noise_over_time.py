"""Weight noise that grows over the epochs, or that remembers the steps before."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from genmeasure.errors import InputError, unknown
from genmeasure.training.context import Context
from genmeasure.training.pieces import Objective, Probe, Recipe
from genmeasure.training.probes.distributions import standard_noise
from genmeasure.training.probes.noise import Noise, trainable

SMALLEST = 1e-5
"""Where the log-linear schedule begins, in units of weight (public code of arXiv:2306.08553)."""

SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda fraction, sigma: sigma,
    "linear": lambda fraction, sigma: fraction * sigma,
    "log-linear": lambda fraction, sigma: SMALLEST ** (1 - fraction) * sigma ** fraction}
"""sigma at a fraction of the way from the first epoch (0) to the last one (1)."""


@dataclass(frozen=True)
class NoiseOverTime(Recipe[Probe]):
    """`Noise` whose sigma follows a schedule and whose draws are correlated from step to step.

    schedule: "constant", "linear" (0 in the first epoch, noise.sigma in the last one) or "log-linear" (1e-5 to
    noise.sigma); the last two need the number of epochs. momentum: of the perturbation, 0 up to below 1;
    U_t = momentum U_{t-1} + sqrt(1 - momentum²) V_t with fresh V_t, separately for each of the draws. U_t keeps mean 0
    and standard deviation sigma; only normal noise also keeps its shape. Neither the paper (arXiv:2306.08553) nor its
    public code fixes a formula for such a momentum: this one is ours.
    """

    noise: Noise
    schedule: str = "constant"
    momentum: float = 0.0

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise unknown("schedule of sigma", self.schedule, SCHEDULES)
        if self.schedule == "log-linear" and not self.noise.sigma > 0:
            raise InputError("schedule='log-linear' came with sigma=0; sigma must be above 0 to have a logarithm")
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum={self.momentum} of the perturbation came; it must be at least 0 and below 1")

    def prepare(self, context: Context) -> RunningNoise:
        """Raises `InputError` for a schedule in a run whose number of epochs is unknown."""
        if self.schedule != "constant" and context.epochs is None:
            raise InputError(f"schedule={self.schedule!r} of sigma came without a number of epochs; pass epochs=… to "
                             "the context")
        return RunningNoise(self, context.epochs)


class RunningNoise(Probe):
    """`NoiseOverTime` in a run of so many epochs."""

    def __init__(self, recipe: NoiseOverTime, epochs: int | None):
        self.recipe, self.noise, self.epochs = recipe, recipe.noise, epochs
        self.memory: dict[str, Tensor] = {}
        self.sigma = self.sigma_in(1)

    @property
    def passes(self) -> int:
        return self.noise.passes

    def sigma_in(self, epoch: int) -> float:
        """The standard deviation in the epoch with this number, from 1; a single epoch has the full one."""
        fraction = 1.0 if self.epochs is None or self.epochs == 1 else (epoch - 1) / (self.epochs - 1)
        return SCHEDULES[self.recipe.schedule](fraction, self.noise.sigma)

    def begin_epoch(self, number: int, predict: Callable[[], Tensor]) -> None:
        self.sigma = self.sigma_in(number)

    def gradient(self, model: nn.Module, objective: Objective, generator: Generator | None) -> Tensor:
        parameters = trainable(model)
        noise = (self._drawn(draw, parameters, generator) for draw in range(self.noise.draws))
        return self.noise.over(noise, self.sigma, model, objective)

    @torch.no_grad()
    def _drawn(self, draw: int, parameters: list[nn.Parameter], generator: Generator | None) -> list[Tensor]:
        fresh = standard_noise(parameters, self.noise.distribution, generator)
        momentum = self.recipe.momentum
        if momentum == 0:
            return fresh
        for position, new in enumerate(fresh):
            old = self.memory.get(f"{draw}.{position}")
            self.memory[f"{draw}.{position}"] = new if old is None else \
                momentum * old + math.sqrt(1 - momentum ** 2) * new
        return [self.memory[f"{draw}.{position}"] for position in range(len(fresh))]

    def state(self) -> dict[str, Tensor]:
        return dict(self.memory)

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.memory = dict(state)


def over_time(noise: Noise, schedule: str, momentum: float) -> Noise | NoiseOverTime:
    """The noise itself where nothing changes over time."""
    recipe = NoiseOverTime(noise, schedule, momentum)
    return noise if (schedule, momentum) == ("constant", 0) else recipe
