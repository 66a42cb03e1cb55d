"""A pull towards the start weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genmeasure.errors import InputError
from genmeasure.training.context import Context, unwrapped
from genmeasure.training.groups import by_layer, check_schedule
from genmeasure.training.pieces import Penalty, Recipe


@dataclass(frozen=True)
class DistanceToStart(Recipe[Penalty]):
    """weight * sum ‖W - W_start‖_F² over the extractor + head_weight * sum ‖W‖_F² over the head (about zero).

    L2-SP of Li, Grandvalet, Davoine 2018, arXiv:1802.01483, with weight = alpha/2 and head_weight = beta/2; in
    nats per squared weight, at least 0. biases: whether tensors named bias are pulled too. All other trainable
    tensors are, normalisation layers included. growth, groups and a mapping in place of one weight: as in
    `groups.by_layer`; tensors that nothing fits are free.
    """

    weight: float | Mapping[str, float] = 0.01
    head_weight: float = 0.01
    biases: bool = True
    growth: float = 1.0
    groups: str = "layers"

    def __post_init__(self):
        check_weights(self.weight, self.head_weight)
        check_schedule(self.weight, self.growth, self.groups)

    def prepare(self, context: Context) -> SquaredDistance:
        return SquaredDistance(pulls(context, by_layer(context, self.weight, self.growth, self.groups),
                                     self.head_weight, self.biases))


@dataclass(frozen=True, eq=False)
class SquaredDistance(Penalty):
    """sum over tensors of weight * ‖W - center‖_F². pulls: name -> (weight, center)."""

    pulls: Mapping[str, tuple[float, Tensor]]

    def __call__(self, model: nn.Module) -> Tensor:
        parameters = dict(unwrapped(model).named_parameters())
        return torch.stack([weight * (parameters[name] - center).square().sum()
                            for name, (weight, center) in self.pulls.items()]).sum()


def check_weights(weight: float | Mapping[str, float], head_weight: float) -> None:
    """Raises `InputError` for a negative weight of a penalty."""
    weights = list(weight.values()) if isinstance(weight, Mapping) else [weight]
    if not all(w >= 0 for w in (*weights, head_weight)):
        raise InputError(f"the weights {weight} and {head_weight} of a penalty came; both must be at least 0")


def pulls(context: Context, weights: Mapping[str, float], head_weight: float,
          biases: bool) -> dict[str, tuple[float, Tensor]]:
    """Name -> (weight, center) of every trainable tensor of the extractor that has a weight, about its start, and of
    the head, about zero. biases: whether tensors named bias are among them. Raises `InputError` when none is left."""
    found = {}
    for name, p in context.model.named_parameters():
        if not p.requires_grad or not (biases or name.split(".")[-1] != "bias"):
            continue
        if context.in_head(name):
            found[name] = (head_weight, torch.zeros_like(context.start[name]))
        elif name in weights:
            found[name] = (weights[name], context.start[name])
    if not found:
        raise InputError("the penalty applies to no trainable tensor; pull biases too, or unfreeze a weight")
    return found
