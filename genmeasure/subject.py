"""What is audited: a fine-tuned model, its start, its loss and its data."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from genmeasure.checkpoints.build import build
from genmeasure.checkpoints.match import fingerprint, match
from genmeasure.checkpoints.read import read
from genmeasure.data.batches import DEFAULT_BATCH_SIZE, Batches
from genmeasure.data.readers import load
from genmeasure.engine import Engine, LocalEngine, get_device
from genmeasure.errors import InputError
from genmeasure.layers import Layer, find_layers, folded, forward
from genmeasure.losses import Loss, get_loss
from genmeasure.risk import Risk

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Subject:
    """A fine-tuned checkpoint with its start, its loss and its data.

    model: the fine-tuned model, a copy of its own, in evaluation mode. start: the pretrained state; the head's weight
    is missing where the start has none of its shape. head: path of the head layer, found by running the model if None.
    Quantities that several measures need are computed once (`remember`).
    """

    name: str
    model: nn.Module = field(repr=False)
    start: Mapping[str, Tensor] = field(repr=False)
    loss: Loss
    train: Batches = field(repr=False)
    test: Batches | None = field(default=None, repr=False)
    engine: Engine = field(default_factory=LocalEngine)
    labels: Mapping[str, Any] = field(default_factory=dict)
    head: str | None = None
    _memory: dict = field(default_factory=dict, repr=False, compare=False)

    def remember(self, key: str, compute: Callable[[], Any]) -> Any:
        """`compute()` on the first call with `key`, its result afterwards.

        A result that is used again costs its passes again, so that what a reading costs by itself does not depend on
        what was measured before it.
        """
        if key in self._memory:
            value, passes = self._memory[key]
            self.risk.passes += passes
            return value
        before = self.risk.passes
        value = compute()
        self._memory[key] = value, self.risk.passes - before
        return value

    @functools.cached_property
    def state(self) -> dict[str, Tensor]:
        """The fine-tuned state."""
        return {k: v.detach() for k, v in self.model.state_dict().items()}

    @functools.cached_property
    def risk(self) -> Risk:
        """The loss over the training data."""
        return Risk(self.model, self.loss, self.layers, self.train, self.engine)

    @functools.cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The selected layers, in the order in which they run."""
        some = next(iter(self.model.parameters()))
        few = next(iter(self.train)).select(slice(2)).to(some.device, some.dtype)
        return find_layers(self.model, few, self.head)

    @property
    def head_center(self) -> str:
        """`start` where the start has a head of this shape, else `zero`: what the head's distance is measured from."""
        head = next(layer for layer in self.layers if layer.head)
        return "start" if head.parameter in self.start else "zero"

    def weight(self, layer: Layer, *, fold: bool = False) -> Tensor:
        """The fine-tuned weight of a layer, with the BatchNorm behind it folded in if asked."""
        return folded(layer, self.state, self.model) if fold else self.state[layer.parameter]

    def start_weight(self, layer: Layer, *, fold: bool = False) -> Tensor:
        """The start's weight of a layer, folded with the START's statistics; zero for a head without start."""
        if layer.parameter not in self.start:
            return torch.zeros_like(self.weight(layer))
        return folded(layer, self.start, self.model) if fold else self.start[layer.parameter]

    def displacement(self, layer: Layer, *, fold: bool = False) -> Tensor:
        """W - W(start) of a layer."""
        return self.weight(layer, fold=fold) - self.start_weight(layer, fold=fold)

    @functools.cached_property
    def classes(self) -> int:
        """The number of outputs."""
        some = next(iter(self.model.parameters()))
        with torch.no_grad():
            return forward(self.model, next(iter(self.train)).select(slice(2)).to(some.device, some.dtype)).shape[-1]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes with the weights, the start, the model's code, the data, the batches, the loss and the dtype."""
        loss = self.loss.function
        parts = [fingerprint(self.state), fingerprint(dict(self.start)), repr(self.model), self.train.fingerprint,
                 self.test.fingerprint if self.test else "", str(self.head), self.loss.name, str(self.loss.upper),
                 f"{loss.__module__}.{loss.__qualname__}", *_code(self.model)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _code(model: nn.Module) -> list[str]:
    """The source of every class in the model that is not torch's own; what it computes may change with it."""
    found = []
    for kind in sorted({type(m) for m in model.modules()}, key=lambda k: f"{k.__module__}.{k.__qualname__}"):
        if not kind.__module__.startswith("torch."):
            with contextlib.suppress(OSError, TypeError):  # a class typed into a console has no source
                found.append(inspect.getsource(kind))
    return found


def subject(model: nn.Module, start: nn.Module | Mapping[str, Tensor] | str | PathLike, train: Iterable | Batches,
            test: Iterable | Batches | None = None, *, loss: str | Loss = "cross-entropy", name: str = "subject",
            device: str = "auto", dtype: str = "float32", head: str | None = None,
            labels: Mapping[str, Any] | None = None, engine: Engine | None = None) -> Subject:
    """A subject from plain objects.

    model: the fine-tuned module; it is copied and left as it is. start: the pretrained module, its state dict, or the
    path of a checkpoint file. train, test: any iterable of batches (tuples of inputs and labels, dicts with `labels`,
    BatchEncoding). loss: a registered name or a `Loss`. dtype: float32 or float64; checkpoints are cast to it.
    head: path of the head layer, by default the selected layer that runs last. labels: columns for the readings.

    Raises `InputError` for weights that are not finite, a start that does not match, data that the model does not run
    on, inputs that are NaN, and labels outside the classes.
    """
    if dtype not in DTYPES:
        raise InputError(f"the dtype {dtype!r} came; choose one of {', '.join(DTYPES)}")
    place = {"device": get_device(device), "dtype": DTYPES[dtype]}
    owned = copy.deepcopy(model).eval().requires_grad_(False).to(**place)
    train = train if isinstance(train, Batches) else Batches(train, "train")
    test = test if test is None or isinstance(test, Batches) else Batches(test, "test")
    result = Subject(name, owned, {}, get_loss(loss), train, test, engine or LocalEngine(), dict(labels or {}), head)
    _check_finite(result.state, f"weights of {name!r}")
    _check_runs(result)
    _check_data(result)
    state = start.state_dict() if isinstance(start, nn.Module) else start
    if isinstance(state, (str, PathLike)):
        state = read(state).tensors
    head_module = next(layer.name for layer in result.layers if layer.head)
    skeleton = copy.deepcopy(owned)
    left_out = match(skeleton, dict(state), head=head_module)
    started = {k: v.to(device=place["device"]) for k, v in skeleton.state_dict().items() if k not in left_out}
    _check_finite(started, f"start's weights of {name!r}")
    return Subject(result.name, owned, started, result.loss, train, test, result.engine, result.labels, head)


def _check_finite(state: Mapping[str, Tensor], what: str) -> None:
    for name, tensor in state.items():
        bad = (~torch.isfinite(tensor)).sum().item() if tensor.is_floating_point() else 0
        if bad:
            raise InputError(f"the {what} hold {bad} NaN or infinite numbers in {name!r}; "
                             "a finite checkpoint is needed")


def _check_runs(subject: Subject) -> None:
    some = next(iter(subject.model.parameters()))
    for data in filter(None, (subject.train, subject.test)):
        few = next(iter(data)).select(slice(2))
        try:
            with torch.no_grad():
                outputs = forward(subject.model, few.to(some.device, some.dtype))
        except Exception as error:  # a model may raise anything for inputs that it was not written for
            raise InputError(f"the model {type(subject.model).__name__} does not run on {data.name!r} "
                             f"({type(error).__name__}: {(str(error).splitlines() or [''])[0]}); "
                             "give inputs of the shape and type that it was trained on") from error
        if outputs.ndim != 2 or len(outputs) != len(few):
            raise InputError(f"the model gives outputs of the shape {list(outputs.shape)} for {len(few)} examples of "
                             f"{data.name!r}; one row of scores per example is needed")


def _check_data(subject: Subject) -> None:
    for data in filter(None, (subject.train, subject.test)):
        labels = data.labels
        if not all(t.isfinite().all() for batch in data for t in batch.tensors() if t.is_floating_point()):
            raise InputError(f"the data set {data.name!r} holds NaN or infinite numbers; repair or drop these examples")
        if subject.loss.classification and labels.is_floating_point():
            raise InputError(f"labels of type {labels.dtype} came in {data.name!r}; {subject.loss.name} needs "
                             "whole-number class labels")
        if subject.loss.classification and (labels.min() < 0 or labels.max() >= subject.classes):
            raise InputError(f"the labels of {data.name!r} lie in {int(labels.min())}..{int(labels.max())} but the "
                             f"model has {subject.classes} outputs; labels must be 0..{subject.classes - 1}")


@dataclass(frozen=True)
class SubjectFiles:
    """A subject by the names of its files, small enough to travel to another process.

    model: a builder (`torchvision:resnet18`, `pkg.module:function`, ...). start, end: checkpoint files. train, test:
    data (a manifest name, `FILE.npz#train`, `pkg.module:function`). labels: pairs for the readings' label columns.
    """

    name: str
    model: str
    start: str
    end: str
    train: str
    test: str | None = None
    loss: str = "cross-entropy"
    device: str = "auto"
    dtype: str = "float32"
    batch_size: int = DEFAULT_BATCH_SIZE
    head: str | None = None
    labels: tuple[tuple[str, Any], ...] = ()

    def load(self, engine: Engine | None = None) -> Subject:
        """Read everything and build the subject; bad input raises `InputError`."""
        model = build(self.model)
        match(model, read(self.end).tensors)
        return subject(model, self.start, load(self.train, batch_size=self.batch_size),
                       load(self.test, batch_size=self.batch_size) if self.test else None, loss=self.loss,
                       name=self.name, device=self.device, dtype=self.dtype, head=self.head, labels=dict(self.labels),
                       engine=engine)
