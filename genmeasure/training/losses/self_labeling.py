"""Labels that are corrected, and examples that are weighted, by the model's own predictions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from genmeasure.data.batches import Batch
from genmeasure.errors import InputError, unknown
from genmeasure.losses import cross_entropy
from genmeasure.training.context import Context
from genmeasure.training.losses.ensembled_targets import rows_of
from genmeasure.training.pieces import Recipe, TrainLoss

DECAY, LOWEST = 0.1, 0.5
"""The temperature falls as exp(-DECAY * epochs), down to LOWEST of its first value."""
NORMALIZATIONS = ("batch", "data")


@dataclass(frozen=True)
class Correction:
    """A label that was changed before an epoch (from 1): of the example at `row` of the training data, from one class
    to another, which had the probability `confidence`."""

    epoch: int
    row: int
    before: int
    after: int
    confidence: float


@dataclass(frozen=True)
class SelfLabeling(Recipe[TrainLoss]):
    """Self-labeling of Li, Zhang 2021, arXiv:2111.04578: label correction and reweighting. Epochs count from 1.

    Correction: before each epoch from `correct_from` on, an example for which a class other than its present label has
    a probability above `threshold` takes that class as its label, for good. The probabilities are those of all training
    examples in evaluation mode (public code: of one augmented pass in training mode), averaged over epochs with the
    weight `averaging` on the past (0: none of it). limit: at most this fraction of all labels may differ from the given
    ones, the most confident first.
    Reweighting: in epochs from `reweight_from` on, the loss l of an example on its present label has the weight
    exp(-l/tau), detached. normalization: "batch" divides by the mean over the minibatch, so that their sum is
    sum_b softmax(-l/tau)_b l_b as published, and the weight of an example depends on which others stand beside it (in a
    short last batch it is larger); "data" divides by the mean over all training examples before the epoch instead.
    tau = temperature * max(0.5, exp(-0.1 (epoch - reweight_from))) (public code is one epoch late).
    correction, reweighting: False leaves one of the two out.
    """

    threshold: float = 0.9
    correct_from: int = 10
    reweight_from: int = 5
    temperature: float = 2.0
    correction: bool = True
    reweighting: bool = True
    normalization: str = "batch"
    averaging: float = 0.0
    limit: float = 1.0

    def __post_init__(self):
        for name in ("threshold", "averaging", "limit"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)} came; it must lie between 0 and 1")
        for name in ("correct_from", "reweight_from"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} came; epochs count from 1")
        if not self.temperature > 0:
            raise InputError(f"temperature={self.temperature} came; it must be above 0")
        if self.normalization not in NORMALIZATIONS:
            raise unknown("normalization", self.normalization, NORMALIZATIONS)

    def prepare(self, context: Context) -> SelfLabeledCrossEntropy:
        """Raises `InputError` outside of a run, where the training labels are not known."""
        if context.examples is None:
            raise InputError("self-labeling came outside of a run; give the training examples to "
                             "Context.of(…, examples=…)")
        return SelfLabeledCrossEntropy(context.examples.targets, self)


class SelfLabeledCrossEntropy(TrainLoss):
    """`SelfLabeling` for known labels. given: [n], as they came. labels: [n], as they are now. epoch: the present."""

    def __init__(self, labels: Tensor, recipe: SelfLabeling):
        self.given, self.recipe = labels.detach().cpu().clone(), recipe
        self.labels, self.epoch = self.given.clone(), 0
        self._average: Tensor | None = None
        self._mean_weight = 1.0
        self._changes, self._confidences = torch.empty(0, 4, dtype=torch.int64), torch.empty(0, dtype=torch.float64)

    @property
    def corrections(self) -> list[Correction]:
        """Every change of a label, in the order in which they were made."""
        return [Correction(*change, confidence) for change, confidence in
                zip(self._changes.tolist(), self._confidences.tolist(), strict=True)]

    @property
    def divisible(self) -> bool:
        return not (self.recipe.reweighting and self.recipe.normalization == "batch")

    def report(self) -> list[dict[str, Any]]:
        """`corrections`."""
        return [asdict(correction) for correction in self.corrections]

    @property
    def reweights(self) -> bool:
        return self.recipe.reweighting and self.epoch >= self.recipe.reweight_from

    def begin_epoch(self, number: int, predict: Callable[[], Tensor]) -> None:
        """Correct labels and find the mean weight, from one evaluation of all training examples where it is needed."""
        self.epoch = number
        recipe = self.recipe
        corrects = recipe.correction and number >= recipe.correct_from
        averages = recipe.correction and recipe.averaging > 0
        weighs = self.reweights and recipe.normalization == "data"
        if not (corrects or averages or weighs):
            return
        outputs = predict().detach().cpu().double()
        if averages:
            fresh, past = outputs.softmax(1), self._average
            self._average = fresh if past is None else recipe.averaging * past + (1 - recipe.averaging) * fresh
        if corrects:
            self._correct(outputs.softmax(1) if self._average is None else self._average)
        if weighs:
            losses = cross_entropy(outputs, self.labels)
            self._mean_weight = torch.exp(-losses / temperature(recipe, number)).mean().item()

    def draw(self, batch: Batch, generator: Generator | None = None, model: nn.Module | None = None) -> Batch:
        """The batch with its present labels."""
        return replace(batch, targets=self.labels[rows_of(batch).cpu()].to(batch.targets))

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = cross_entropy(outputs, targets)
        if not self.reweights:
            return losses
        exponents = -losses.detach() / temperature(self.recipe, self.epoch)
        if self.recipe.normalization == "batch":
            return len(losses) * exponents.softmax(0) * losses
        return exponents.exp() / self._mean_weight * losses

    def _correct(self, probabilities: Tensor) -> None:
        confidence, best = probabilities.max(1)
        wanted = (confidence > self.recipe.threshold) & (best != self.labels)
        changed = self.labels != self.given
        kept = changed & ~(wanted & (best == self.given))
        room = math.floor(self.recipe.limit * len(self.given) + 1e-9) - int(kept.sum())
        fresh = (wanted & ~changed).nonzero().squeeze(1)
        beyond = fresh[confidence[fresh].argsort(descending=True, stable=True)][max(0, room):]
        wanted[beyond] = False
        rows = wanted.nonzero().squeeze(1)
        epochs = torch.full_like(rows, self.epoch)
        self._changes = torch.cat([self._changes, torch.stack([epochs, rows, self.labels[rows], best[rows]], 1)])
        self._confidences = torch.cat([self._confidences, confidence[rows]])
        self.labels[rows] = best[rows]

    def state(self) -> dict[str, Tensor]:
        average = {} if self._average is None else {"average": self._average.clone()}
        return {**average, "labels": self.labels.clone(), "epoch": torch.tensor(self.epoch),
                "mean_weight": torch.tensor(self._mean_weight, dtype=torch.float64),
                "changes": self._changes.clone(), "confidences": self._confidences.clone()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._average = state["average"].clone() if "average" in state else None
        self.labels, self.epoch = state["labels"].clone(), int(state["epoch"])
        self._mean_weight = state["mean_weight"].item()
        self._changes, self._confidences = state["changes"].clone(), state["confidences"].clone()


def temperature(recipe: SelfLabeling, epoch: int) -> float:
    """tau of an epoch from 1."""
    return recipe.temperature * max(LOWEST, math.exp(-DECAY * max(0, epoch - recipe.reweight_from)))
