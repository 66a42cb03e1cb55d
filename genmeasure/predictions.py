"""What the fine-tuned model says on every example: losses, errors, margins."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genmeasure.data.batches import Batch, Batches
from genmeasure.errors import InputError
from genmeasure.losses import zero_one
from genmeasure.norms import lengths
from genmeasure.risk import FORWARD, scale
from genmeasure.subject import Subject


@dataclass(frozen=True)
class Predictions:
    """Per example, each [examples], float64: on the given labels and, where true labels came along, on those.

    Where an example is several predictions (the tokens of a sequence), loss, error and wrong are sums over them divided
    by their mean number, so that means over examples are means over predictions; share: an example's number of
    predictions divided by the mean number.
    error: 1 for a wrong prediction; None for a loss without right and wrong. margin: f(x)_y - max over the other
    classes, on raw outputs, of the given label; None for a loss without one class per example. wrong: 1 where the given
    label is not the true one. input_norm: Euclidean norm of an example's floating-point inputs, nan where it has none.
    output_norm: of its outputs.
    """

    loss: Tensor
    input_norm: Tensor
    output_norm: Tensor
    share: Tensor
    error: Tensor | None = None
    margin: Tensor | None = None
    clean_loss: Tensor | None = None
    clean_error: Tensor | None = None
    wrong: Tensor | None = None


def margins(outputs: Tensor, targets: Tensor) -> Tensor:
    """f(x)_y - max_{j != y} f(x)_j for outputs [batch, classes], targets [batch]."""
    right = outputs.gather(1, targets[:, None])
    others = outputs.scatter(1, targets[:, None], -torch.inf)
    return right.squeeze(1) - others.max(1).values


def has_input_norm(subject: Subject) -> bool:
    """Whether examples are vectors of numbers; words by their index have no norm."""
    return any(t.is_floating_point() and t.ndim > 1 for t in next(iter(subject.train)).input_tensors())


def largest_input_norm(subject: Subject) -> float:
    """Over the training set; raises `InputError` where inputs have no norm."""
    if not has_input_norm(subject):
        raise InputError(f"the inputs of {subject.name!r} are whole numbers, which have no norm; this theorem needs "
                         "inputs that are vectors, so leave it out")
    return predictions(subject).input_norm.max().item()


def predictions(subject: Subject, split: str = "train") -> Predictions:
    """The model's `Predictions` on the split `train` or `test`; computed once per subject."""
    data = getattr(subject, split)
    if data is None:
        raise InputError(f"the subject {subject.name!r} has no {split} data; pass them with --{split}")
    return subject.remember(f"predictions {split}", lambda: _predict(subject, data))


@torch.no_grad()
def _predict(subject: Subject, data: Batches) -> Predictions:
    risk, loss, factor = subject.risk, subject.loss, scale(subject.loss, data)
    classes, errors = loss.classification, loss.errors or (zero_one if loss.classification else None)
    noisy = next(iter(data)).clean is not None

    def rows(batch: Batch) -> Tensor:
        batch = risk.place(batch)
        risk.spend(FORWARD, len(batch))
        outputs = risk.outputs({}, batch).double()
        floats = [t.flatten(1) for t in batch.input_tensors() if t.is_floating_point() and t.ndim > 1]
        one = torch.ones(len(batch), dtype=outputs.dtype, device=outputs.device)
        columns = [factor * loss(outputs, batch.targets),
                   lengths(torch.cat(floats, 1)) if floats else torch.nan * one, lengths(outputs),
                   one if loss.predictions is None else factor * loss.predictions(batch.targets).double()]
        if errors is not None:
            columns.append(factor * errors(outputs, batch.targets))
        if classes:
            columns.append(margins(outputs, batch.targets))
        if errors is not None and noisy:
            wrong = (batch.clean != batch.targets).double().reshape(len(batch), -1)
            columns += [factor * loss(outputs, batch.clean), factor * errors(outputs, batch.clean),
                        wrong.mean(1) if loss.predictions is None else factor * wrong.sum(1)]
        return torch.stack([c.double() for c in columns], 1)
    table = subject.engine.examples(rows, data)
    bad = (~torch.isfinite(table[:, 0])).nonzero().squeeze(1)
    if len(bad):
        ends = torch.tensor([len(targets) for targets in data.targets]).cumsum(0)
        batch = int(torch.searchsorted(ends, bad[:1], right=True))
        raise InputError(f"the loss of {subject.name!r} is NaN or infinite on example {int(bad[0])} of {data.name!r} "
                         f"(batch {batch}) and {len(bad) - 1} others; check the inputs, or measure with --dtype "
                         "float64")
    names = ["loss", "input_norm", "output_norm", "share", *(["error"] if errors is not None else []),
             *(["margin"] if classes else []),
             *(["clean_loss", "clean_error", "wrong"] if errors is not None and noisy else [])]
    return Predictions(**dict(zip(names, table.unbind(1), strict=True)))
