"""The gradient uphill plus differences of gradients along the way (CR-SAM as its public code has it)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor, nn

from genmeasure.errors import InputError
from genmeasure.training.pieces import Objective, Probe
from genmeasure.training.probes.both_ways import both_ways
from genmeasure.training.probes.uphill import check_rho


@dataclass(frozen=True)
class CurvatureDifferences(Probe):
    """The gradient of L(w+e) + gamma [L(w+e) + L(w-e) - 2 L(w)] + beta [L(w+e) - L(w-e)], e = rho g/‖g‖_2 held fixed.

    g is the gradient at w. This is what the public code of CR-SAM (Wu, Luo, Wunsch 2024, arXiv:2312.13555) computes;
    the paper's logarithms are in `LogCurvature`. rho: length of e, in units of weight. gamma, beta: without unit. All
    at least 0. The returned loss is L(w). Running statistics are updated in the first pass only, and all passes repeat
    the same dropout, whose noise would else drown the differences.
    """

    rho: float = 0.1
    gamma: float = 0.1
    beta: float = 0.01
    passes = 3

    def __post_init__(self):
        check_rho(self.rho)
        if not (self.gamma >= 0 and self.beta >= 0):
            raise InputError(f"gamma={self.gamma} and beta={self.beta} came; the weights of both differences must be "
                             "at least 0")

    def gradient(self, model: nn.Module, objective: Objective, generator: Generator | None) -> Tensor:
        found = both_ways(model, objective, self.rho)
        found.combine(-2 * self.gamma, 1 + self.gamma + self.beta, self.gamma - self.beta)
        return found.here
