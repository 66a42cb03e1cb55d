"""Losses that are right on average although labels are noisy."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from genmeasure.data.label_noise.confusion import checked_confusion, condition_number, inverse_confusion
from genmeasure.errors import InputError, unknown
from genmeasure.training.context import Context
from genmeasure.training.dual_t import dual_t
from genmeasure.training.evaluate import predict
from genmeasure.training.pieces import Recipe, TrainLoss

CORRECTIONS = ("backward", "non-negative", "forward")
CONFUSIONS = ("given", "dual-t")
log = logging.getLogger("genmeasure")


@dataclass(frozen=True)
class Consistent(Recipe[TrainLoss]):
    """Cross-entropy corrected for label noise with the confusion matrix F[true, given] = P(given | true).

    correction: "backward", sum_j (F^-1)[given label, j] l[j], l = -ln p, whose mean over the label noise is the
    cross-entropy on the true label (Natarajan et al. 2013; Patrini et al. 2017, arXiv:1609.03683, Theorem 1; used for
    fine-tuning by Ju, Li, Zhang 2022, arXiv:2206.02659); "non-negative", the same with each class's part of the batch
    mean, which estimates a mean of losses, kept from falling below 0 (as Ishida et al. 2019, arXiv:1810.04327, do for
    complementary labels); "forward", -ln sum_i p[i] F[i, given label] (Patrini et al. 2017, Theorem 2), which is
    bounded below and has the right minimiser, but another value.
    confusion: "given", the run's, which must be that of the noise that was really made; "dual-t", estimated from a
    plain run on the same noisy labels (Yao et al. 2020, arXiv:2006.07805), after which training begins at the start.
    floor: for "backward", whose entries of F^-1 off the diagonal are negative, so that the loss is unbounded below, and
    None leaves it so; a number (in nats) stops an example whose loss has fallen to it, which is safe but no longer
    exactly unbiased.
    """

    floor: float | None = None
    correction: str = "backward"
    confusion: str = "given"

    def __post_init__(self):
        if self.correction not in CORRECTIONS:
            raise unknown("correction", self.correction, CORRECTIONS)
        if self.confusion not in CONFUSIONS:
            raise unknown("source of the confusion matrix", self.confusion, CONFUSIONS)
        if self.floor is not None and self.correction != "backward":
            raise InputError(f"floor={self.floor} came with correction={self.correction!r}; a floor goes with "
                             "correction='backward' only")

    def prepare(self, context: Context) -> TrainLoss:
        """Raises `InputError` for a confusion matrix that is missing, of another size, improper or near-singular."""
        confusion = self._estimated(context) if self.confusion == "dual-t" else self._given(context)
        sample = next(t for t in context.start.values() if t.is_floating_point())
        if self.correction == "forward":
            _check_possible(confusion, context)
            return ForwardCorrected(confusion.to(sample))
        inverse = inverse_confusion(confusion)
        if self.correction == "non-negative":
            return NonNegativeConsistent(inverse.to(sample), confusion)
        if self.floor is None and bool((inverse < 0).any()):
            log.warning("the consistent loss is unbounded below (F^-1 has entries down to %.3g): watch the training "
                        "loss, or give it a floor=, correction='non-negative' or 'forward', or clip gradients",
                        inverse.min().item())
        return ConsistentCrossEntropy(inverse.to(sample), self.floor, confusion)

    def _given(self, context: Context) -> Tensor:
        if context.confusion is None:
            raise InputError("the consistent loss came without a confusion matrix of the label noise; pass "
                             "confusion=…, [classes, classes] with the true label in rows")
        if tuple(context.confusion.shape) != (context.classes, context.classes):
            raise InputError(f"a confusion matrix of shape {tuple(context.confusion.shape)} came; for this model it "
                             f"must be {(context.classes, context.classes)}")
        return checked_confusion(context.confusion.cpu())

    def _estimated(self, context: Context) -> Tensor:
        if context.reference is None or context.examples is None:
            raise InputError("confusion='dual-t' came outside of fine_tune, where there is no plain run to estimate it "
                             "from; pass confusion=… of genmeasure.training.dual_t.dual_t")
        batch_size = context.settings.batch_size if context.settings else len(context.examples)
        scores = predict(context.reference(), context.examples, batch_size)
        confusion = dual_t(scores.cpu().double().softmax(1), context.examples.targets)
        log.info("dual-T estimate of the confusion matrix: condition number %.3g", condition_number(confusion))
        return confusion


def _check_possible(confusion: Tensor, context: Context) -> None:
    if context.examples is None:
        return
    for label in context.examples.targets.unique().tolist():
        if not confusion[:, label].any():
            raise InputError(f"the label {label} came in the data, but by the confusion matrix no class is ever given "
                             "it; give the confusion matrix of the noise that was really made")


@dataclass(frozen=True, eq=False)
class ConsistentCrossEntropy(TrainLoss):
    """`Consistent` for a known inverse [k, k] of the confusion matrix, which is kept beside it where it is known."""

    inverse: Tensor
    floor: float | None = None
    confusion: Tensor | None = None

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = corrected(-torch.log_softmax(outputs, 1), targets, self.inverse.to(outputs))
        return losses if self.floor is None else losses.clamp(min=self.floor)


@dataclass(frozen=True, eq=False)
class NonNegativeConsistent(TrainLoss):
    """`Consistent` with the parts of the batch mean that belong to each class kept from falling below 0.

    A part that is negative is left out for this batch: the mean of the returned losses is sum_j max(0, R_j), R_j the
    batch mean of (F^-1)[given label, j] l[j]. It depends on how the data are cut into batches.
    """

    inverse: Tensor
    confusion: Tensor | None = None

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        parts = self.inverse.to(outputs)[targets] * -torch.log_softmax(outputs, 1)
        return (parts * (parts.detach().mean(0) > 0)).sum(1)


@dataclass(frozen=True, eq=False)
class ForwardCorrected(TrainLoss):
    """-ln sum_i p[i] F[i, given label] for a known confusion matrix [k, k]; it may be singular."""

    confusion: Tensor

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return -torch.logsumexp(torch.log_softmax(outputs, 1) + self.confusion.to(outputs).log().T[targets], 1)


def corrected(losses: Tensor, targets: Tensor, inverse: Tensor) -> Tensor:
    """losses [batch, k] for every class, given labels [batch] -> [batch], sum_j inverse[label, j] losses[:, j]."""
    return (inverse[targets] * losses).sum(1)
