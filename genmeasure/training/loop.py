"""The one loop that runs every fine-tuning algorithm."""

from __future__ import annotations

import copy
import functools
import math
import time
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from genmeasure.data.batches import Batch, Batches
from genmeasure.engine import get_device, progress
from genmeasure.errors import InputError
from genmeasure.layers import forward
from genmeasure.training.algorithm import Algorithm, get_algorithm
from genmeasure.training.averaged import averaged
from genmeasure.training.context import Context
from genmeasure.training.evaluate import evaluate, kept_modes, predict
from genmeasure.training.examples import shuffled_rows, whole
from genmeasure.training.minibatch import MiniBatch
from genmeasure.training.optimizers import OPTIMIZERS, learning_rate
from genmeasure.training.pieces import Objective
from genmeasure.training.randomness import seeded
from genmeasure.training.settings import Settings


@dataclass(frozen=True)
class Epoch:
    """One epoch; numbers count from 1, labels are the given ones, losses are in nats.

    training_loss: mean of the algorithm's loss over the examples of the epoch, without penalty, in training mode and
    while the weights move. validation_loss, validation_error: cross-entropy and fraction of wrong labels in evaluation
    mode at the end of the epoch; nan without validation data. seconds: wall clock.
    """

    number: int
    training_loss: float
    validation_loss: float
    validation_error: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Result:
    """A fine-tuned model and how it came about.

    model: a new module with the weights of epoch `chosen`, its modules in the modes in which they came. passes:
    forward-backward passes over the training data. algorithm: with its pieces prepared for this run, so that
    `algorithm.constraint.report()` tells which tensors a constraint applied to. seconds: wall clock.
    """

    model: nn.Module
    history: tuple[Epoch, ...]
    chosen: int
    seconds: float
    passes: int
    algorithm: Algorithm
    settings: Settings


def fine_tune(model: nn.Module, algorithm: Algorithm | str, train: Batches, validation: Batches | None = None, *,
              settings: Settings | None = None, head: str | None = None, confusion: Tensor | None = None) -> Result:
    """Train a copy of `model`, a classifier that holds the start weights, with `algorithm`.

    algorithm: or its registered name, for the defaults. head: path of the module put on for the new task, by default
    the last linear or convolutional module in registration order. confusion: [classes, classes], P(given label | true
    label) with the true label in rows, for algorithms that correct label noise. The model, its modes and the global
    random state are left as they were; on one machine's CPU the same settings give the same weights bit for bit.
    Raises `InputError` for data or facts that do not fit, and when training diverges.
    """
    began = time.perf_counter()
    settings = settings or Settings()
    algorithm = get_algorithm(algorithm)
    selection = algorithm.selection or settings.selection
    if validation is None and selection.uses_validation:
        raise InputError("an epoch is to be chosen by its validation figures, but no validation data came; pass "
                         "validation=… or select='last'")
    device = get_device(settings.device)
    with seeded(settings.seed, device):
        trained = copy.deepcopy(model).to(device)
        examples = whole(train)
        classes = _check(trained, examples, train.name)
        if validation is not None:
            _check_labels(validation.labels, classes, validation.name)

        @functools.cache
        def reference() -> nn.Module:
            return fine_tune(model, "plain", train, validation, settings=settings, head=head).model
        ready = algorithm.prepare(Context.of(trained, classes=classes, head=head, confusion=confusion,
                                             examples=examples, epochs=settings.epochs, reference=reference,
                                             settings=settings))
        history, chosen = _run(trained, ready, examples, validation, selection, settings)
    trained.zero_grad(set_to_none=True)
    passes = len(history) * (ready.probe.passes + ready.loss.passes)
    return Result(trained, history, chosen, time.perf_counter() - began, passes, ready, settings)


def _run(model, algorithm, examples, validation, selection, settings) -> tuple[tuple[Epoch, ...], int]:
    order = torch.Generator().manual_seed(settings.seed)
    if algorithm.adapter is not None:
        algorithm.adapter.attach(model, torch.Generator().manual_seed(settings.seed))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = OPTIMIZERS[settings.optimizer](parameters, settings)
    noise = torch.Generator(parameters[0].device).manual_seed(settings.seed)
    history: list[Epoch] = []
    kept = None
    with kept_modes(model):
        model.train()
        for number in progress(range(1, settings.epochs + 1), "epochs", settings.epochs):
            began = time.perf_counter()
            rate = _rate(algorithm, number, settings)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = _epoch(number, model, algorithm, examples, optimizer, settings.batch_size, order, noise)
            if not (math.isfinite(loss) and all(bool(p.isfinite().all()) for p in parameters)):
                raise InputError(f"training diverged in epoch {number}: the training loss was {loss:.3g} at the "
                                 f"learning rate {rate:g}; use a smaller learning rate")
            with averaged(model, algorithm.average, examples, settings.batch_size):
                figures = (math.nan, math.nan) if validation is None else evaluate(model, validation)
                history.append(Epoch(number, loss, *figures, rate, time.perf_counter() - began))
                if selection.uses_validation and selection.chosen(history) == number:
                    kept = copy.deepcopy(model.state_dict())
            if selection.stop(history):
                break
        if kept is None:
            with averaged(model, algorithm.average, examples, settings.batch_size):
                kept = copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    if algorithm.adapter is not None:
        algorithm.adapter.merge(model)
    return tuple(history), selection.chosen(history)


def _rate(algorithm: Algorithm, number: int, settings: Settings) -> float:
    rate = None if algorithm.average is None else algorithm.average.learning_rate(number)
    return learning_rate(number, settings) if rate is None else rate


def _epoch(number, model, algorithm, examples, optimizer, batch_size, order: Generator, noise: Generator) -> float:
    """One pass over the examples; their mean loss."""
    sample = optimizer.param_groups[0]["params"][0]
    for piece in algorithm.pieces().values():
        piece.begin_epoch(number, functools.partial(predict, model, examples, batch_size))
    total = torch.zeros((), dtype=torch.float64 if sample.device.type != "mps" else torch.float32, device=sample.device)
    for rows in shuffled_rows(len(examples), batch_size, order):
        batch = algorithm.loss.draw(examples.select(rows).to(sample.device, sample.dtype), order, model)
        total += len(rows) * step(model, algorithm, MiniBatch(model, algorithm.loss, batch), optimizer, noise)
        if algorithm.average is not None:
            algorithm.average.after_step(model, number)
    if algorithm.average is not None:
        algorithm.average.after_epoch(model, number)
    return total.item() / len(examples)


def step(model: nn.Module, algorithm: Algorithm, objective: Objective, optimizer: torch.optim.Optimizer,
         generator: Generator | None = None) -> Tensor:
    """One step of a prepared algorithm on a minibatch; its mean loss, detached."""
    value = algorithm.probe(model, objective, generator)
    if algorithm.penalty is not None:
        algorithm.penalty(model).backward()
    optimizer.step()
    if algorithm.constraint is not None:
        algorithm.constraint(model)
    return value


@torch.no_grad()
def _check(model: nn.Module, examples: Batch, name: str) -> int:
    """The number of classes; raises `InputError` for a model or labels that cannot be trained."""
    sample = next((p for p in model.parameters() if p.requires_grad), None)
    if sample is None:
        raise InputError(f"no parameter of {type(model).__name__} requires a gradient; set requires_grad on those to "
                         "be trained")
    with kept_modes(model):
        model.eval()
        outputs = forward(model, examples.select(slice(0, 2)).to(sample.device, sample.dtype))
    if outputs.ndim != 2:
        raise InputError(f"{type(model).__name__} gave outputs of shape {tuple(outputs.shape)}; a classifier must give "
                         "one row of class scores for each example")
    _check_labels(examples.targets, outputs.shape[1], name)
    return outputs.shape[1]


def _check_labels(labels: Tensor, classes: int, name: str) -> None:
    if labels.is_floating_point() or labels.ndim != 1 or int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise InputError(f"the labels of {name!r} came as {labels.dtype} of shape {tuple(labels.shape)} between "
                         f"{labels.min().item():g} and {labels.max().item():g}; for this model they must be whole "
                         f"numbers from 0 to {classes - 1}, one for each example")
