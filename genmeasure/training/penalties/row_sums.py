"""A pull towards the start weights by the maximum absolute row sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genmeasure.training.constraints.projections import row_sums
from genmeasure.training.context import Context, unwrapped
from genmeasure.training.groups import by_layer, check_schedule, layer_weights, output_dimension
from genmeasure.training.penalties.distance import check_weights, pulls
from genmeasure.training.pieces import Penalty, Recipe


@dataclass(frozen=True)
class RowSumsToStart(Recipe[Penalty]):
    """weight * sum max_r ‖W_r - W_r,start‖_1 over the extractor + head_weight * sum max_r ‖W_r‖_1 over the head.

    MARS-SP of Gouk, Hospedales, Pontil 2021, arXiv:2002.08253: the norm is not squared, r runs over a weight's rows
    (outputs), and a one-dimensional tensor counts with its largest entry. Embeddings and learned positions are free.
    weight, head_weight: in nats per weight, at least 0. biases, growth, groups: as in `DistanceToStart`.
    """

    weight: float | Mapping[str, float] = 0.001
    head_weight: float = 0.001
    biases: bool = False
    growth: float = 1.0
    groups: str = "layers"

    def __post_init__(self):
        check_weights(self.weight, self.head_weight)
        check_schedule(self.weight, self.growth, self.groups)

    def prepare(self, context: Context) -> LargestRowSums:
        layers = layer_weights(context.model)
        vectors = {name for name, p in context.model.named_parameters() if p.ndim <= 1}
        weights = by_layer(context, self.weight, self.growth, self.groups)
        found = pulls(context, {name: w for name, w in weights.items() if name in layers or name in vectors},
                      self.head_weight, self.biases)
        return LargestRowSums(found, {name: output_dimension(layers[name]) for name in found if name in layers})


@dataclass(frozen=True, eq=False)
class LargestRowSums(Penalty):
    """sum over tensors of weight * max_r ‖W_r - center_r‖_1.

    pulls: name -> (weight, center). outputs: name -> dimension that counts rows; every entry of a tensor that is not
    named there is a row of its own. The gradient is shared evenly by rows that are equally large, and 0 at the center.
    """

    pulls: Mapping[str, tuple[float, Tensor]]
    outputs: Mapping[str, int]

    def __call__(self, model: nn.Module) -> Tensor:
        parameters = dict(unwrapped(model).named_parameters())
        return torch.stack([weight * self._norm(name, parameters[name] - center)
                            for name, (weight, center) in self.pulls.items()]).sum()

    def _norm(self, name: str, difference: Tensor) -> Tensor:
        rows = row_sums(difference, self.outputs[name]) if name in self.outputs else difference.abs()
        return rows.amax()
