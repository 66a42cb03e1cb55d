"""What the fine-tuned model says on every example: losses, errors, margins."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genmeasure.data.batches import Batch, Batches
from genmeasure.errors import InputError
from genmeasure.risk import FORWARD
from genmeasure.subject import Subject


@dataclass(frozen=True)
class Predictions:
    """Per example, each [examples], float64: on the given labels and, where true labels came along, on those.

    margin: f(x)_y - max over the other classes, on raw outputs, of the given label; None for a loss without classes.
    wrong: 1 where the given label is not the true one. input_norm: Euclidean norm of an example's floating-point
    inputs.
    """

    loss: Tensor
    input_norm: Tensor
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


def predictions(subject: Subject, split: str = "train") -> Predictions:
    """The model's `Predictions` on the split `train` or `test`; computed once per subject."""
    data = getattr(subject, split)
    if data is None:
        raise InputError(f"the subject {subject.name!r} has no {split} data; pass them with --{split}")
    return subject.remember(f"predictions {split}", lambda: _predict(subject, data))


@torch.no_grad()
def _predict(subject: Subject, data: Batches) -> Predictions:
    risk, classes = subject.risk, subject.loss.classification
    noisy = next(iter(data)).clean is not None

    def rows(batch: Batch) -> Tensor:
        batch = risk.place(batch)
        risk.spend(FORWARD, len(batch))
        outputs = risk.outputs({}, batch).double()
        floats = [t.flatten(1) for t in batch.tensors()[:-1] if t.is_floating_point() and t.ndim > 1]
        columns = [subject.loss(outputs, batch.targets),
                   torch.cat(floats, 1).norm(dim=1) if floats else torch.full_like(outputs.flatten(1)[:, 0], torch.nan)]
        for labels in [batch.targets, *([batch.clean] if noisy else [])] if classes else []:
            columns += [subject.loss(outputs, labels), (outputs.argmax(1) != labels).to(outputs)]
        if classes:
            columns += [(batch.clean != batch.targets).to(outputs)] if noisy else []
            columns.append(margins(outputs, batch.targets))
        return torch.stack([c.double() for c in columns], 1)
    table = subject.engine.examples(rows, data)
    bad = (~torch.isfinite(table[:, 0])).nonzero()
    if len(bad):
        raise InputError(f"the loss of {subject.name!r} is NaN or infinite on example {int(bad[0])} of {data.name!r} "
                         f"and {len(bad) - 1} others; check the inputs, or measure with --dtype float64")
    loss, norm, *rest = table.unbind(1)
    if not classes:
        return Predictions(loss, norm)
    clean = {"clean_loss": rest[2], "clean_error": rest[3], "wrong": rest[4]} if noisy else {}
    return Predictions(loss, norm, error=rest[1], margin=rest[-1], **clean)
