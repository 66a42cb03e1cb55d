"""The divergence between a label and what is predicted for several views of an example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn

from genmeasure.data.batches import Batch, map_tensors
from genmeasure.errors import InputError
from genmeasure.training.pieces import TrainLoss


@dataclass(frozen=True)
class GeneralizedJensenShannon(TrainLoss):
    """D(label, p_1, …, p_views) / Z (Englesson, Azizpour 2021, arXiv:2105.04522: JS for one view, else GJS).

    D is the Jensen-Shannon divergence H(m) - sum_i w_i H(p_i), m = sum_i w_i p_i, with the weight pi_1 = label_weight
    for the label and equal weights for the views; Z = -(1 - pi_1) ln(1 - pi_1). For one view it goes to the
    cross-entropy as pi_1 -> 0 and to 1 - p[label] as pi_1 -> 1 (Proposition 1).
    views: of every example, next to each other in a drawn batch, which is therefore `views` times as long; the returned
    losses repeat that of an example for each of its views. A view is the input plus Gaussian noise of standard
    deviation sigma, in units of the inputs (the paper: random augmentation, which this package does not do).
    In a loop of your own with augmented views, call `jensen_shannon`. Raises `InputError` for inputs that are not
    floating-point when there is noise to be added.
    """

    label_weight: float = 0.5
    views: int = 1
    sigma: float = 0.0

    def __post_init__(self):
        if not 0 < self.label_weight < 1:
            raise InputError(f"label_weight={self.label_weight} came; it must lie above 0 and below 1")
        if self.views < 1:
            raise InputError(f"views={self.views} came; at least 1 view is needed")
        if not self.sigma >= 0:
            raise InputError(f"sigma={self.sigma} came; a standard deviation must be at least 0")

    def draw(self, batch: Batch, generator: Generator | None = None, model: nn.Module | None = None) -> Batch:
        """Every example `views` times in a row, each time with fresh noise."""
        if self.views == 1 and self.sigma == 0:
            return batch
        several = batch.select(torch.arange(len(batch)).repeat_interleave(self.views))

        def noisy(x: Tensor) -> Tensor:
            if self.sigma == 0:
                return x
            if not x.is_floating_point():
                raise InputError(f"views with noise came across an input of type {x.dtype}; noise is added to "
                                 "floating-point inputs only, so choose sigma=0")
            return x + self.sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        return replace(several, inputs=map_tensors(several.inputs, noisy))

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Raises `InputError` when views of one example were torn apart."""
        if len(outputs) % self.views or not torch.equal(targets, targets[::self.views].repeat_interleave(self.views)):
            raise InputError(f"a batch of {len(outputs)} came whose examples do not stand {self.views} times in a row; "
                             "draw it with this loss, and cut it at whole examples only")
        views = [outputs[view::self.views] for view in range(self.views)]
        return jensen_shannon(views, targets[::self.views], self.label_weight).repeat_interleave(self.views)


def jensen_shannon(views: Sequence[Tensor], targets: Tensor, label_weight: float = 0.5) -> Tensor:
    """Outputs [batch, k] for each view, labels [batch] -> [batch], as `GeneralizedJensenShannon`."""
    logs = torch.stack([torch.log_softmax(outputs, 1) for outputs in views])
    weight = (1 - label_weight) / len(views)
    mixed = torch.logsumexp(logs + math.log(weight), 0)
    label = torch.full_like(mixed, -math.inf).scatter(1, targets[:, None], math.log(label_weight))
    mixed = torch.logaddexp(mixed, label)
    divergence = weight * (logs.exp() * logs).sum((0, 2)) - (mixed.exp() * mixed).sum(1)
    return divergence / (-(1 - label_weight) * math.log1p(-label_weight))
