"""The gradient uphill under a Gaussian posterior that is learned on the way (Bayesian SAM)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from genmeasure.errors import InputError
from genmeasure.training.context import Context, unwrapped
from genmeasure.training.perturbed import perturbed
from genmeasure.training.pieces import Objective, Probe, Recipe
from genmeasure.training.probes.distributions import standard_noise
from genmeasure.training.statistics import frozen_statistics, has_statistics


@dataclass(frozen=True)
class PosteriorUphill(Recipe[Probe]):
    """One step of Bayesian SAM (Möllenhoff, Khan 2023, arXiv:2210.01620, Algorithm 1), as a gradient for plain SGD.

    The posterior is N(w, 1/(N s)) entry by entry, N the number of training examples. With g the gradient at a draw from
    it, e = rho g/s and h the gradient at w + e:

        m <- beta1 m + (1 - beta1) (h + delta w),   s <- beta2 s + (1 - beta2) (sqrt(s) |g| + delta + damping),

    and `.grad` is m/s, so that plain SGD makes w <- w - learning rate * m/s. That holds for SGD with momentum 0 and
    weight decay 0 alone; in `fine_tune` every other optimizer is refused. m starts at 0, s at `scale`.

    rho: at least 0. beta1, beta2: 0 up to below 1. delta: weight decay of the posterior's mean, damping: smallest s
    apart from it; at least 0, not both 0. scale: above 0. examples: N, by default those of the run. The returned loss
    is that at the draw. Running statistics belong to w: a model that has them costs one more forward pass per step.
    The step count is not corrected for m and s that start at fixed values, as in the paper.
    """

    rho: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    delta: float = 1e-4
    damping: float = 0.1
    scale: float = 1.0
    examples: int | None = None

    def __post_init__(self):
        if not self.rho >= 0:
            raise InputError(f"rho={self.rho} came; the step uphill must be at least 0")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise InputError(f"beta1={self.beta1} and beta2={self.beta2} came; both must be at least 0 and below 1")
        if not (self.delta >= 0 and self.damping >= 0 and self.delta + self.damping > 0 and self.scale > 0):
            raise InputError(f"delta={self.delta}, damping={self.damping} and scale={self.scale} came; delta and "
                             "damping must be at least 0 and not both 0, scale must be above 0")
        if self.examples is not None and self.examples < 1:
            raise InputError(f"examples={self.examples} came; the posterior needs at least 1 example")

    def prepare(self, context: Context) -> LearnedPosterior:
        """Raises `InputError` for an optimizer that would change the update, or an unknown number of examples."""
        settings = context.settings
        if settings is not None and (settings.optimizer, settings.momentum, settings.weight_decay) != ("sgd", 0, 0):
            raise InputError(f"Bayesian SAM came with optimizer={settings.optimizer!r}, "
                             f"momentum={settings.momentum:g}, weight_decay={settings.weight_decay:g}; it has a "
                             "momentum, a weight decay and a scale of its own: use "
                             "optimizer='sgd', momentum=0, weight_decay=0")
        examples = self.examples or (None if context.examples is None else len(context.examples))
        if examples is None:
            raise InputError("Bayesian SAM came without the number of training examples, which sets the width of its "
                             "posterior; pass examples=…")
        return LearnedPosterior(self, examples)


class LearnedPosterior(Probe):
    """`PosteriorUphill` for a known number of examples. scale, momentum: s and m of the paper, by parameter name."""

    passes = 2

    def __init__(self, recipe: PosteriorUphill, examples: int):
        self.recipe, self.examples = recipe, examples
        self.scale: dict[str, Tensor] = {}
        self.momentum: dict[str, Tensor] = {}

    def gradient(self, model: nn.Module, objective: Objective, generator: Generator | None) -> Tensor:
        parameters = {name: p for name, p in unwrapped(model).named_parameters() if p.requires_grad}
        for name, p in parameters.items():
            if name not in self.scale:
                self.scale[name] = torch.full_like(p, self.recipe.scale, requires_grad=False)
                self.momentum[name] = torch.zeros_like(p, requires_grad=False)
        noise = standard_noise(list(parameters.values()), "normal", generator)
        offsets = [u / (math.sqrt(self.examples) * self.scale[name].sqrt())
                   for name, u in zip(parameters, noise, strict=True)]
        if has_statistics(model):
            objective.value()
        with frozen_statistics(model):
            with perturbed(list(parameters.values()), offsets):
                value = objective.gradient()
            drawn = {name: p.grad for name, p in parameters.items() if p.grad is not None}
            model.zero_grad(set_to_none=True)
            with perturbed([parameters[name] for name in drawn],
                           [self.recipe.rho * g / self.scale[name] for name, g in drawn.items()]):
                objective.gradient()
        for name, g in drawn.items():
            self._update(name, parameters[name], g)
        return value

    @torch.no_grad()
    def _update(self, name: str, p: nn.Parameter, drawn: Tensor) -> None:
        """m and s, and m/s in place of the gradient uphill in `p.grad`; drawn: g."""
        recipe, s, m = self.recipe, self.scale[name], self.momentum[name]
        m.mul_(recipe.beta1).add_((1 - recipe.beta1) * (p.grad + recipe.delta * p))
        s.copy_(recipe.beta2 * s + (1 - recipe.beta2) * (s.sqrt() * drawn.abs() + recipe.delta + recipe.damping))
        p.grad = m / s

    def state(self) -> dict[str, Tensor]:
        return {**{f"scale.{name}": s.clone() for name, s in self.scale.items()},
                **{f"momentum.{name}": m.clone() for name, m in self.momentum.items()}}

    def load(self, state: Mapping[str, Tensor]) -> None:
        for key, tensor in state.items():
            kind, name = key.split(".", 1)
            (self.scale if kind == "scale" else self.momentum)[name] = tensor.clone()
