"""The plain gradient."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor, nn

from genmeasure.training.pieces import Objective, Probe


@dataclass(frozen=True)
class Here(Probe):
    """The gradient at the weights themselves."""

    passes = 1

    def gradient(self, model: nn.Module, objective: Objective, generator: Generator | None) -> Tensor:
        return objective.gradient()
