"""The gradient uphill plus that of the logarithm of the curvature along the way (CR-SAM as its paper has it)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from genmeasure.errors import InputError
from genmeasure.training.pieces import Objective, Probe
from genmeasure.training.probes.both_ways import BothWays, both_ways
from genmeasure.training.probes.uphill import check_rho


@dataclass(frozen=True)
class LogCurvature(Probe):
    """The gradient of L(w+e) + alpha log T + beta log N, e = rho g/‖g‖_2 held fixed, where g is the gradient at w.

    T = [L(w+e) + L(w-e) - 2 L(w)]/rho² stands for the trace of the Hessian and N = [L(w+e) - L(w-e)]/(2 rho) for the
    norm of the gradient: CR-SAM of the paper (Wu, Luo, Wunsch 2024, arXiv:2312.13555); its public code, without
    logarithms, is `CurvatureDifferences`. rho: length of e, in units of weight. alpha, beta: in nats. All at least 0.
    A difference that is not positive, or not above its rounding error, has no logarithm: its term is then left out.
    The returned loss is L(w). Running statistics are updated in the first pass only, and all passes repeat the same
    dropout, whose noise would else drown the differences.
    """

    rho: float = 0.1
    alpha: float = 0.01
    beta: float = 0.01
    passes = 3

    def __post_init__(self):
        check_rho(self.rho)
        if not (self.alpha >= 0 and self.beta >= 0):
            raise InputError(f"alpha={self.alpha} and beta={self.beta} came; the weights of both logarithms must be at "
                             "least 0")

    def gradient(self, model: nn.Module, objective: Objective, generator: Generator | None) -> Tensor:
        found = both_ways(model, objective, self.rho)
        curvature, slope = self.factors(found)
        found.combine(-2 * curvature, 1 + curvature + slope, curvature - slope)
        return found.here

    @torch.no_grad()
    def factors(self, found: BothWays) -> tuple[Tensor, Tensor]:
        """alpha and beta over the second and the first difference of the loss, or zero where these have no
        logarithm."""
        sizes = found.up.abs() + found.down.abs() + 2 * found.here.abs()
        rounding = 8 * torch.finfo(sizes.dtype).eps * sizes

        def over(weight: float, difference: Tensor) -> Tensor:
            return torch.where(difference > rounding, weight / difference, 0.0)
        return (over(self.alpha, found.up + found.down - 2 * found.here), over(self.beta, found.up - found.down))
