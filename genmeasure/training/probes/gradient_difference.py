"""The gradient uphill, and a penalty on how far it has turned on the way (HERO)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from genmeasure.errors import InputError
from genmeasure.training.perturbed import perturbed
from genmeasure.training.pieces import Objective, Probe
from genmeasure.training.probes.adaptive_uphill import adaptive_ascent
from genmeasure.training.probes.uphill import ascent, check_rho, taken
from genmeasure.training.randomness import rewinder
from genmeasure.training.statistics import frozen_statistics


@dataclass(frozen=True)
class GradientDifference(Probe):
    """The gradient of L(w+e) + lam sum_i mean((grad_i L(w+e) - g_i)²), where g is the gradient at w, held fixed.

    HERO (Yang et al. 2022, arXiv:2111.11986, as in its public code). i: the weight tensors with two or more
    dimensions, so neither biases nor scales of normalisation layers; the mean is over a tensor's entries, so that lam
    weighs an entry of a small tensor more: the penalty's gradient is 2 lam/size_i H(w+e) (grad_i L(w+e) - g_i), through
    a double backward pass. e: with adaptive=True that of ASAM, rho |w|² g/‖|w| g‖_2, else rho g/‖g‖_2, also held fixed;
    rho and lam at least 0. The returned loss is L(w). Running statistics are updated in the first pass only, and both
    passes repeat the same dropout.
    """

    rho: float = 0.5
    lam: float = 1.0
    adaptive: bool = True
    passes = 4
    """The double backward pass counted as two more."""

    def __post_init__(self):
        check_rho(self.rho)
        if not self.lam >= 0:
            raise InputError(f"lam={self.lam} came; the weight of the penalty must be at least 0")

    def gradient(self, model: nn.Module, objective: Objective, generator: Generator | None) -> Tensor:
        rewind = rewinder(next(model.parameters()).device)
        value = objective.gradient()
        reached, gradients = taken(model)
        with torch.no_grad():
            offsets = adaptive_ascent(reached, gradients, self.rho) if self.adaptive else ascent(gradients, self.rho)
        rewind()
        # the fused kernels of attention have no second derivative
        with perturbed(reached, offsets), frozen_statistics(model), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
            self._uphill(objective, {p: g for p, g in zip(reached, gradients, strict=True) if p.ndim >= 2})
        return value

    def _uphill(self, objective: Objective, before: dict[nn.Parameter, Tensor]) -> None:
        """before: the weight tensors and their gradients at w."""
        loss = objective.graph()
        turned = torch.autograd.grad(loss, list(before), create_graph=True) if before else ()
        penalties = [nn.functional.mse_loss(now, then) for now, then in zip(turned, before.values(), strict=True)]
        (loss + self.lam * sum(penalties)).backward()
