"""A pull towards the start weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genmeasure.errors import InputError
from genmeasure.training.context import Context, unwrapped
from genmeasure.training.pieces import Penalty, Recipe


@dataclass(frozen=True)
class DistanceToStart(Recipe[Penalty]):
    """weight * sum ‖W - W_start‖_F² over the extractor + head_weight * sum ‖W‖_F² over the head (about zero).

    L2-SP of Li, Grandvalet, Davoine 2018, arXiv:1802.01483, with weight = alpha/2 and head_weight = beta/2; in
    nats per squared weight, at least 0. biases: whether tensors named bias are pulled too. All other trainable
    tensors are, normalisation layers included.
    """

    weight: float = 0.01
    head_weight: float = 0.01
    biases: bool = True

    def __post_init__(self):
        if not (self.weight >= 0 and self.head_weight >= 0):
            raise InputError(f"the weights {self.weight} and {self.head_weight} of a penalty came; both must be at "
                             "least 0")

    def prepare(self, context: Context) -> SquaredDistance:
        pulled = [name for name, p in context.model.named_parameters()
                  if p.requires_grad and (self.biases or name.split(".")[-1] != "bias")]
        if not pulled:
            raise InputError("the penalty applies to no trainable tensor; pull biases too, or unfreeze a weight")
        return SquaredDistance({
            name: (self.head_weight, torch.zeros_like(context.start[name])) if context.in_head(name)
            else (self.weight, context.start[name]) for name in pulled})


@dataclass(frozen=True, eq=False)
class SquaredDistance(Penalty):
    """sum over tensors of weight * ‖W - center‖_F². pulls: name -> (weight, center)."""

    pulls: Mapping[str, tuple[float, Tensor]]

    def __call__(self, model: nn.Module) -> Tensor:
        parameters = dict(unwrapped(model).named_parameters())
        return torch.stack([weight * (parameters[name] - center).square().sum()
                            for name, (weight, center) in self.pulls.items()]).sum()
