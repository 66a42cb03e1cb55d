"""A loss that is right on average although labels are noisy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genmeasure.data.label_noise import inverse_confusion
from genmeasure.errors import InputError
from genmeasure.training.context import Context
from genmeasure.training.pieces import Recipe, TrainLoss


@dataclass(frozen=True)
class Consistent(Recipe[TrainLoss]):
    """sum_j (F^-1)[given label, j] l[j], l = -ln p, F[true, given] = P(given | true).

    Its mean over the label noise is the cross-entropy on the true label (Natarajan et al. 2013; Patrini et al. 2017,
    arXiv:1609.03683, Theorem 1; used for fine-tuning by Ju, Li, Zhang 2022, arXiv:2206.02659).
    F is the run's confusion matrix and must be that of the noise that was really made.
    floor: entries of F^-1 off the diagonal are negative, so the loss is unbounded below, and None leaves it so; a
    number (in nats) stops an example whose loss has fallen to it, which is safe but no longer exactly unbiased.
    """

    floor: float | None = None

    def prepare(self, context: Context) -> ConsistentCrossEntropy:
        """Raises `InputError` for a confusion matrix that is missing, of another size, improper or near-singular."""
        if context.confusion is None:
            raise InputError("the consistent loss came without a confusion matrix of the label noise; pass "
                             "confusion=…, [classes, classes] with the true label in rows")
        if tuple(context.confusion.shape) != (context.classes, context.classes):
            raise InputError(f"a confusion matrix of shape {tuple(context.confusion.shape)} came; for this model it "
                             f"must be {(context.classes, context.classes)}")
        sample = next(t for t in context.start.values() if t.is_floating_point())
        return ConsistentCrossEntropy(inverse_confusion(context.confusion.cpu()).to(sample), self.floor)


@dataclass(frozen=True, eq=False)
class ConsistentCrossEntropy(TrainLoss):
    """`Consistent` for a known inverse [k, k] of the confusion matrix."""

    inverse: Tensor
    floor: float | None = None

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = corrected(-torch.log_softmax(outputs, 1), targets, self.inverse.to(outputs))
        return losses if self.floor is None else losses.clamp(min=self.floor)


def corrected(losses: Tensor, targets: Tensor, inverse: Tensor) -> Tensor:
    """losses [batch, k] for every class, given labels [batch] -> [batch], sum_j inverse[label, j] losses[:, j]."""
    return (inverse[targets] * losses).sum(1)
