"""The plain gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Generator, Tensor, nn

from genmeasure.training.pieces import Probe


@dataclass(frozen=True)
class Here(Probe):
    """The gradient at the weights themselves."""

    passes = 1

    def __call__(self, model: nn.Module, loss: Callable[[], Tensor], generator: Generator | None = None) -> Tensor:
        model.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        return value.detach()
