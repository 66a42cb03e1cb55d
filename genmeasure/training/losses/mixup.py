"""Cross-entropy on mixed examples."""

from __future__ import annotations

from dataclasses import dataclass, replace

import scipy.special
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from genmeasure.data.batches import Batch, map_tensors
from genmeasure.errors import InputError
from genmeasure.training.context import Context
from genmeasure.training.pieces import Recipe, TrainLoss


@dataclass(frozen=True)
class MixUp(Recipe[TrainLoss]):
    """Mix every example of a batch with another one, in the proportion lambda ~ Beta(alpha, alpha), one per batch.

    x = lambda x_i + (1 - lambda) x_j, and the same for the one-hot labels (Zhang et al. 2018, arXiv:1710.09412;
    j is a permutation of the batch). alpha: above 0.
    """

    alpha: float = 0.2

    def __post_init__(self):
        if not self.alpha > 0:
            raise InputError(f"alpha={self.alpha} came; the parameter of the Beta distribution must be above 0")

    def prepare(self, context: Context) -> MixedCrossEntropy:
        return MixedCrossEntropy(self.alpha, context.classes)


@dataclass(frozen=True)
class MixedCrossEntropy(TrainLoss):
    """`MixUp` for a known number of classes."""

    alpha: float
    classes: int

    def draw(self, batch: Batch, generator: Generator | None = None, model: nn.Module | None = None) -> Batch:
        """A batch whose targets are distributions over the classes [batch, classes]."""
        uniform = torch.rand((), generator=generator, dtype=torch.float64).item()
        partners = torch.randperm(len(batch), generator=generator).to(batch.targets.device)
        return mixed(batch, partners, float(scipy.special.betaincinv(self.alpha, self.alpha, uniform)), self.classes)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets.to(outputs.dtype), reduction="none")


def mixed(batch: Batch, partners: Tensor, proportion: float, classes: int) -> Batch:
    """`proportion` of the batch and the rest of its rows `partners` [batch]; targets become [batch, classes].

    Raises `InputError` for inputs that are not floating-point, such as tokens.
    """
    def mix(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            raise InputError(f"mixup came across an input of type {x.dtype}; it mixes floating-point inputs only, so "
                             "choose another algorithm for tokens")
        return proportion * x + (1 - proportion) * x[partners]
    labels = F.one_hot(batch.targets, classes).to(batch.tensors()[0].dtype)
    return replace(batch, inputs=map_tensors(batch.inputs, mix), targets=mix(labels))
