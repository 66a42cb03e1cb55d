"""A running average of a model's trainable parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from genmeasure.training.context import unwrapped
from genmeasure.training.pieces import Average

Update = Callable[[list[Tensor], list[Tensor], int], None]
"""(averages, weights, how many were averaged before): takes the weights into the averages, in place. Both
`get_swa_multi_avg_fn` and `get_ema_multi_avg_fn` of `torch.optim.swa_utils` return one."""


class RunningAverage(Average):
    """count: how many times weights were taken in. Averages of half-precision weights are kept in float32, where a
    small share of new weights does not vanish in the rounding."""

    def __init__(self):
        self.count = 0
        self._weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def include(self, model: nn.Module, update: Update) -> None:
        """Take the model's present weights into the average."""
        present = {name: p.detach().to(torch.promote_types(p.dtype, torch.float32))
                   for name, p in unwrapped(model).named_parameters() if p.requires_grad}
        if self.count:
            self._weights = {name: self._weights[name].to(p.device) for name, p in present.items()}
            update(list(self._weights.values()), list(present.values()), self.count)
        else:
            self._weights = {name: p.clone() for name, p in present.items()}
        self.count += 1

    def weights(self) -> Mapping[str, Tensor] | None:
        return dict(self._weights) if self.count else None

    def state(self) -> dict[str, Tensor]:
        return {"count": torch.tensor(self.count),
                **{f"weights.{name}": tensor.clone() for name, tensor in self._weights.items()}}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.count = int(state["count"])
        self._weights = {name.removeprefix("weights."): tensor.clone() for name, tensor in state.items()
                         if name != "count"}
