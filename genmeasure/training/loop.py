"""The one loop that runs every fine-tuning algorithm."""

from __future__ import annotations

import copy
import functools
import hashlib
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from genmeasure.checkpoints.match import fingerprint
from genmeasure.data.batches import Batch, Batches
from genmeasure.engine import get_device
from genmeasure.errors import InputError
from genmeasure.layers import forward
from genmeasure.training.algorithm import Algorithm, get_algorithm
from genmeasure.training.augmentation import augmented
from genmeasure.training.averaged import averaged
from genmeasure.training.context import Context, unwrapped
from genmeasure.training.evaluate import evaluate, kept_modes, predict
from genmeasure.training.examples import shuffled_rows, whole
from genmeasure.training.history import Epoch
from genmeasure.training.loggers import Logger, ProgressBar, finite
from genmeasure.training.minibatch import MiniBatch
from genmeasure.training.optimizers import build_optimizer
from genmeasure.training.pieces import Objective, Selection
from genmeasure.training.precision import Overflow, Precision
from genmeasure.training.randomness import seed_globally, seeded
from genmeasure.training.ranks import APART, Ranks
from genmeasure.training.run_folder import BEST, LAST, REFERENCE, RunFolder, described
from genmeasure.training.schedules import learning_rate
from genmeasure.training.settings import Settings
from genmeasure.training.state import State


@dataclass(frozen=True, eq=False)
class Result:
    """A fine-tuned model and how it came about.

    model: a new module with the weights of epoch `chosen`, its modules in the modes in which they came. passes:
    forward-backward passes over the training data. algorithm: with its pieces prepared for this run, so that
    `algorithm.constraint.report()` tells which tensors a constraint applied to. seconds: wall clock of this call.
    checkpoint: the file with the same weights, in the run's folder.
    """

    model: nn.Module
    history: tuple[Epoch, ...]
    chosen: int
    seconds: float
    passes: int
    algorithm: Algorithm
    settings: Settings
    checkpoint: Path | None = None


def fine_tune(model: nn.Module, algorithm: Algorithm | str, train: Batches, validation: Batches | None = None, *,
              settings: Settings | None = None, head: str | None = None, confusion: Tensor | None = None,
              folder: str | Path | None = None, facts: Mapping[str, str] | None = None, save_every: int | None = None,
              loggers: Sequence[Logger] = (), log_every: int | None = None) -> Result:
    """Train a copy of `model`, a classifier that holds the start weights, with `algorithm`.

    algorithm: or its registered name, for the defaults. head: path of the module put on for the new task, by default
    the last linear or convolutional module in registration order. confusion: [classes, classes], P(given label | true
    label) with the true label in rows, for algorithms that correct label noise.
    folder: where figures, checkpoints and the state of the run are kept (`run_folder.RunFolder`); None writes nothing.
    The same call goes on where a run in its folder was broken off, to the same weights bit for bit, and only reads
    them where it is complete. save_every: steps after which the state is saved, besides the end of each epoch.
    facts: text that goes into the checkpoints' metadata. loggers: each is called with a record of every epoch, and of
    every `log_every`-th step.
    A model in `DistributedDataParallel` is trained by all of its processes, each of which makes this same call: a batch
    is divided among them, what they find is added up once for each gradient, and rank 0 writes. The result is that of
    one process up to rounding, except that dropout draws otherwise and that BatchNorm normalises by each slice.
    The model, its modes and the global random state are left as they were; on one machine's CPU the same settings give
    the same weights bit for bit. Raises `InputError` for data or facts that do not fit, for a folder of another run,
    and when training diverges.
    """
    began = time.perf_counter()
    settings = settings or Settings()
    algorithm = get_algorithm(algorithm)
    ranks, given, model = Ranks.of(model), model, unwrapped(model)
    selection = algorithm.selection or settings.selection
    if validation is None and (selection.uses_validation or settings.schedule == "plateau"):
        raise InputError("an epoch is to be chosen by its validation figures, but no validation data came; pass "
                         "validation=… or select='last'" if selection.uses_validation else
                         "schedule='plateau' follows validation figures, but no validation data came; pass "
                         "validation=… or another schedule")
    for name, value in (("save_every", save_every), ("log_every", log_every)):
        if value is not None and value < 1:
            raise InputError(f"{name}={value} came; it must be at least 1 step")
    device = get_device(settings.device) if ranks.size == 1 else next(model.parameters()).device
    with seeded(settings.seed, device):
        trained = copy.deepcopy(model).to(device)
        examples = whole(train)
        classes = _check(trained, examples, train.name)
        augmented(examples.select(slice(2)), settings.augment, torch.Generator())  # refuses what is not an image
        if validation is not None:
            _check_labels(validation.labels, classes, validation.name)

        @functools.cache
        def reference() -> nn.Module:
            return fine_tune(given, "plain", train, validation, settings=settings, head=head,
                             folder=None if folder is None else Path(folder) / REFERENCE, facts=facts,
                             save_every=save_every).model
        context = Context.of(trained, classes=classes, head=head, confusion=confusion, examples=examples,
                             epochs=settings.epochs, reference=reference, settings=settings)
        kept = None
        if folder is not None:
            kept = RunFolder(folder, identity(context, algorithm, train, validation, device, ranks), facts)
            ranks.lead_does(kept.check)
        ready = algorithm.prepare(context)
        if (settings.accumulate > 1 or ranks.size > 1) and not ready.loss.divisible:
            raise InputError(f"accumulate={settings.accumulate} and {ranks.size} processes came with "
                             f"{type(ready.loss).__name__}, whose loss of one example depends on other examples; "
                             "train in one process with accumulate=1")
        if kept is not None:
            ranks.lead_does(kept.open)
        log = [*([] if kept is None else [kept.metrics]), *loggers]
        run = Run(trained, ready, context, validation, selection, kept, save_every, log, log_every, ranks)
        run.carry_out()
    trained.zero_grad(set_to_none=True)
    history = tuple(run.state.history)
    passes = len(history) * (ready.probe.passes + ready.loss.passes)
    return Result(trained, history, selection.chosen(history), time.perf_counter() - began, passes, ready, settings,
                  run.outcome)


def identity(context: Context, algorithm: Algorithm, train: Batches, validation: Batches | None,
             device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """Plain values that tell runs apart."""
    structure = re.sub("0x[0-9a-f]+", "", str(context.model))
    trainable = [name for name, p in context.model.named_parameters() if p.requires_grad]
    return {"start": fingerprint(context.start), "train_data": train.fingerprint,
            "validation_data": None if validation is None else validation.fingerprint, "head": context.head,
            "pieces": described(algorithm), "confusion": described(context.confusion),
            "settings": {**asdict(context.settings), "device": str(device)}, "processes": ranks.size,
            "structure": hashlib.sha256(f"{structure} {trainable}".encode()).hexdigest()}


class Run:
    """One run, from its start or from what its folder holds."""

    def __init__(self, model: nn.Module, algorithm: Algorithm, context: Context, validation: Batches | None,
                 selection: Selection, folder: RunFolder | None = None, save_every: int | None = None,
                 loggers: Sequence[Logger] = (), log_every: int | None = None, ranks: Ranks | None = None):
        self.ranks = ranks or Ranks()
        self.model, self.algorithm, self.validation, self.selection = model, algorithm, validation, selection
        self.examples, self.settings, self.folder = context.examples, context.settings, folder
        self.names = tuple(context.start)
        self.save_every, self.loggers, self.log_every = save_every, loggers, log_every
        if algorithm.adapter is not None:
            algorithm.adapter.attach(model, torch.Generator().manual_seed(self.settings.seed))
        self.optimizer = build_optimizer(model, context, self.settings)
        self.sample = self.optimizer.param_groups[0]["params"][0]
        self.precision = Precision(self.settings.precision, self.sample.device)
        self.state = State(model, algorithm, self.optimizer, self.precision, self.settings.seed, self.ranks)
        self.weights: Mapping[str, Tensor] = {}
        self.outcome: Path | None = None
        if folder is not None:
            self.outcome = folder.path / (BEST if selection.uses_validation else LAST)

    def carry_out(self) -> None:
        """Leaves the model with the weights of the chosen epoch."""
        if self.ranks.size > 1:
            seed_globally(self.settings.seed + self.ranks.rank * APART, self.sample.device)
        self._take_up()
        bar = ProgressBar(self.settings.epochs * len(self._batches()[0]), self.state.steps, shown=self.ranks.lead)
        try:
            with kept_modes(self.model):
                self.model.train()
                while not self._over():
                    self._epoch(bar)
                    self._close_epoch()
        finally:
            bar.close()
        if self.algorithm.adapter is not None:
            self.model.load_state_dict(self.state.kept)
            self.algorithm.adapter.merge(self.model)
        self.model.load_state_dict(self.weights)

    def _take_up(self) -> None:
        saved = None if self.folder is None else self.folder.load()
        if self.folder is not None:
            self.ranks.lead_does(lambda: self.folder.metrics.keep(0 if saved is None else saved[1]["steps"]))
        if saved is not None:
            self.state.load(*saved)
        if self.state.history:
            self.weights = self.folder.weights(self.outcome.name)

    def _over(self) -> bool:
        history = self.state.history
        return bool(history) and (len(history) == self.settings.epochs or self.selection.stop(history))

    def _batches(self) -> tuple[list[Tensor], Tensor]:
        """Rows of the minibatches of the present epoch, and the state of the generator once it has drawn them."""
        generator = torch.Generator()
        generator.set_state(self.state.order_before)
        batches = list(shuffled_rows(len(self.examples), self.settings.batch_size, generator))
        return batches, generator.get_state()

    def _epoch(self, bar: ProgressBar) -> None:
        """The steps of the present epoch that are left."""
        state, algorithm, settings = self.state, self.algorithm, self.settings
        began = time.perf_counter() - state.seconds
        batches, drawn = self._batches()
        for piece in algorithm.pieces().values():
            piece.begin_epoch(state.number, functools.partial(predict, self.model, self.examples, settings.batch_size))
        if state.step == 0:
            state.order.set_state(drawn)
        else:  # taken up in the middle: what begin_epoch did to the pieces was done before
            state.load_pieces()
            state.load_generators()
        for rows in batches[state.step:]:
            self._set_rate(len(batches))
            batch = self.examples.select(rows).to(self.sample.device, self.sample.dtype)
            batch = algorithm.loss.draw(augmented(batch, settings.augment, state.order), state.order, self.model)
            objective = MiniBatch(self.model, algorithm.loss, batch, self.precision, settings.accumulate,
                                  self.ranks)
            value = step(self.model, algorithm, objective, self.optimizer, state.noise, clip=settings.clip,
                         precision=self.precision)
            self.ranks.average_statistics(self.model)
            if value is not None:
                state.total += len(rows) * value
                state.counted += len(rows)
            if algorithm.average is not None:
                algorithm.average.after_step(self.model, state.number)
            state.step, state.steps = state.step + 1, state.steps + 1
            state.seconds = time.perf_counter() - began
            bar(state.number, state.loss)
            if self.log_every is not None and state.steps % self.log_every == 0:
                self._log({"epoch": state.number, "step": state.steps, "learning_rate": self.rate,
                           "loss": math.nan if value is None else value.item()})
            if self.folder is not None and self.save_every is not None and state.steps % self.save_every == 0 \
                    and state.step < len(batches):
                self._save()

    def _set_rate(self, steps: int) -> None:
        average, state = self.algorithm.average, self.state
        rate = None if average is None else average.learning_rate(state.number)
        self.rate = rate if rate is not None else learning_rate(
            state.number, self.settings, step=state.step, steps=steps, history=state.history)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group["factor"]

    def _close_epoch(self) -> None:
        state, average = self.state, self.algorithm.average
        began = time.perf_counter()
        if average is not None:
            average.after_epoch(self.model, state.number)
        loss = state.loss()
        weights = [p for group in self.optimizer.param_groups for p in group["params"]]
        if not (math.isfinite(loss) and all(bool(p.isfinite().all()) for p in weights)):
            raise InputError(f"training diverged in epoch {state.number}: the training loss was {loss:.3g} at the "
                             f"learning rate {self.rate:g}; use a smaller learning rate")
        with averaged(self.model, average, self.examples, self.settings.batch_size):
            figures = (math.nan, math.nan) if self.validation is None else evaluate(self.model, self.validation)
            figures = self.ranks.agreed(figures, self.sample.device)
            seconds = state.seconds + time.perf_counter() - began
            state.history.append(Epoch(state.number, loss, *figures, self.rate, seconds))
            chosen = self.selection.chosen(state.history) == state.number
            present = present_weights(self.model, self.names) if chosen or self.folder is not None else {}
            if chosen and self.algorithm.adapter is not None:
                state.kept = copy.deepcopy(self.model.state_dict())
        if chosen:
            self.weights = present
        epoch = state.history[-1]
        self._log({"epoch": epoch.number, "step": state.steps,
                   **{name: value for name, value in epoch.record().items() if name != "number"}})
        state.begin(state.number + 1)
        if self.folder is not None:
            facts = {"epoch": epoch.number, "history": [one.record() for one in state.history]}
            self.ranks.lead_does(lambda: self.folder.checkpoint(LAST, present, facts))
            if chosen and self.selection.uses_validation:
                self.ranks.lead_does(lambda: self.folder.checkpoint(BEST, present, facts))
            self._save()

    def _save(self) -> None:
        tensors, facts = self.state.tensors(), self.state.facts()
        self.ranks.lead_does(lambda: self.folder.save(tensors, facts))

    def _log(self, record: dict[str, Any]) -> None:
        def log() -> None:
            for logger in self.loggers:
                logger(finite(record))
        self.ranks.lead_does(log)


@torch.no_grad()
def present_weights(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """A copy of the model's parameters and buffers under the names that they had before an adapter was attached."""
    owners = {name: name.rpartition(".") for name in names}
    return {name: getattr(model.get_submodule(owner), last).detach().clone()
            for name, (owner, _, last) in owners.items()}


def step(model: nn.Module, algorithm: Algorithm, objective: Objective, optimizer: torch.optim.Optimizer,
         generator: Generator | None = None, *, clip: float | None = None,
         precision: Precision | None = None) -> Tensor | None:
    """One step of a prepared algorithm on a minibatch; its mean loss, detached, or None for a step that was skipped
    because gradients in float16 overflowed. clip: upper limit of the gradient's norm. precision: of the objective."""
    try:
        value = algorithm.probe(model, objective, generator)
    except Overflow:
        value = None
    else:
        if algorithm.penalty is not None:
            algorithm.penalty(model).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], clip)
    if precision is None:
        optimizer.step()
    elif not precision.step(optimizer):
        return None
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
