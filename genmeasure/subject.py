"""What is audited: a fine-tuned model, its start, its loss and its data."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import inspect
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from genmeasure.checkpoints.build import ModuleFiles, build
from genmeasure.checkpoints.match import fingerprint, match, task_modules
from genmeasure.checkpoints.names import table
from genmeasure.checkpoints.pair import read_pair, read_start
from genmeasure.checkpoints.pinned import (
    anchor,
    fitting,
    is_pinned,
    readable,
    shared_copy,
    started_in_place,
    unreadable,
)
from genmeasure.checkpoints.sharded import Gathered, check_sharded, is_sharded
from genmeasure.curvature.perturbation import moving, units
from genmeasure.data.batches import DEFAULT_BATCH_SIZE, Batch, Batches
from genmeasure.data.readers import load_for
from genmeasure.engine import Engine, LocalEngine, get_device
from genmeasure.engine.sharded import Sharded
from genmeasure.errors import InputError
from genmeasure.layers import BATCH_NORMS, Layer, find_layers, folded, forward
from genmeasure.losses import IGNORED, LOSSES, Loss, get_loss
from genmeasure.precision import FLOAT32, PRECISIONS, Precision
from genmeasure.risk import Risk, nodes, scale
from genmeasure.shared import Shared


@dataclass(frozen=True)
class Subject:
    """A fine-tuned checkpoint with its start, its loss and its data.

    model: the fine-tuned model, a copy of its own, in evaluation mode; a sharded one is the caller's. start: the
    pretrained state; the head's weight is missing where the start has none of its shape. head: path of the head layer,
    found by running the model if None. drawn: names in `start` of a head that the start lacks, as the model drew it
    before fine-tuning. notes: what reading changed, by `start`, `end`, `train` and `test`: dtypes widened, names
    changed, transforms of the data.
    precision: of what is computed. offload: the host keeps what the backward passes of gradients and curvature products
    need, for a device whose memory does not hold it.
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
    drawn: frozenset[str] = frozenset()
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)
    shared: Shared = field(default_factory=Shared, repr=False, compare=False)
    precision: Precision = FLOAT32
    offload: bool = False

    def __reduce__(self) -> tuple:
        return _restored, (ModuleFiles.of(self.model),), self.__dict__

    def remember(self, key: str, compute: Callable[[], Any]) -> Any:
        """`compute()` on the first call with `key`, its result afterwards; see `Shared`."""
        return self.shared.remember(key, compute)

    @functools.cached_property
    def state(self) -> Mapping[str, Tensor]:
        """The fine-tuned state."""
        found = readable(self.model.state_dict())
        return Gathered(found, anchor(self.model).device) if is_sharded(self.model) else found

    @functools.cached_property
    def risk(self) -> Risk:
        """The loss over the training data."""
        return Risk(self.model, self.loss, self.layers, self.train, self.engine, self.shared, self.precision,
                    self.offload)

    @functools.cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The selected layers, in the order in which they run."""
        some = anchor(self.model)
        few = next(iter(self.train)).select(slice(2)).to(some.device, some.dtype)
        return find_layers(self.model, few, self.head)

    @property
    def head_center(self) -> str:
        """What the head's distance is measured from: `start` where the start has a head of this shape, else `init`
        where the weights that it began with are known, else `zero`."""
        head = next(layer for layer in self.layers if layer.head)
        return "init" if head.parameter in self.drawn else "start" if head.parameter in self.start else "zero"

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
        some = anchor(self.model)
        with torch.no_grad():
            return forward(self.model, next(iter(self.train)).select(slice(2)).to(some.device, some.dtype)).shape[-1]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes with the weights, the start, the model's code, the data, the batches, the loss and the dtype."""
        loss = self.loss.function
        parts = [fingerprint(self.state), fingerprint(self.start), repr(self.model), self.train.fingerprint,
                 self.test.fingerprint if self.test else "", str(self.head), self.loss.name, str(self.loss.upper),
                 self.precision.name,
                 f"{loss.__module__}.{loss.__qualname__}", *source_of(self.model)]
        if self.loss.predictions is not None:
            parts.append(getattr(self.loss.predictions, "__qualname__", ""))
        if unreadable(self.model):  # weights that cannot be read are known by what they do
            some = anchor(self.model)
            few = next(iter(self.train)).select(slice(PROBED)).to(some.device, some.dtype)
            parts.append(fingerprint({"outputs": _outputs(self, self.train, few)}))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def source_of(model: nn.Module) -> list[str]:
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
            labels: Mapping[str, Any] | None = None, engine: Engine | None = None,
            init: Mapping[str, Tensor] | None = None,
            notes: Mapping[str, tuple[str, ...]] | None = None, offload: bool = False) -> Subject:
    """A subject from plain objects.

    model: the fine-tuned module; it is copied and left as it is; of a compiled one, what was compiled. A quantised
    model, one that transformers spread by `device_map`, and one whose weights are on several devices are not moved,
    cast or stored twice; their weights that are not floating-point numbers, or not at hand, are no layers and named in
    the notes. start: the pretrained module, its state dict, or the path of a checkpoint file. train, test: any iterable
    of batches (tuples of inputs and labels, dicts with `labels`, BatchEncoding). loss: a registered name
    (`token-cross-entropy` and `next-token-cross-entropy` for labels [batch, tokens], `binary-cross-entropy` for several
    labels per example) or a `Loss`. dtype: float32 or float64; checkpoints are cast to it; `tf32`: float32 with
    products of factors of 10 bits, on CUDA; `bfloat16`: weights, noise and losses in float32, passes through the model
    in bfloat16, for measures of forward passes alone. head: path of the head layer, by default the selected layer that
    runs last. labels: columns for the readings. init: the model's state before fine-tuning, from which a head is
    measured that the start lacks; without it, from zero. notes: what reading the checkpoints changed, for the readings.
    offload: gradients, Hessian and Gauss-Newton products keep the activations of their backward passes in the host's
    memory; the numbers are the same, in more time.

    Raises `InputError` for weights that are not finite, a start that does not match, data that the model does not run
    on, inputs that are NaN, labels outside the classes, outputs that the loss does not take, a model whose outputs
    differ between two calls or with the other examples of a batch, outputs or a loss that depend on parameters which
    are not the model's own, and a model that is spread over ranks in another way.
    """
    model, start = (getattr(given, "_orig_mod", given) for given in (model, start))  # by torch.compile
    if dtype not in PRECISIONS:
        raise InputError(f"the dtype {dtype!r} came; choose one of {', '.join(PRECISIONS)}")
    precision = PRECISIONS[dtype]
    place = {"device": get_device(device), "dtype": precision.weights}
    if precision.products != FLOAT32.products and place["device"].type != "cuda":
        raise InputError(f"dtype={dtype!r} came for the device {place['device']}, which has no such products; take "
                         "float32, or --device cuda")
    train = train if isinstance(train, Batches) else Batches(train, "train")
    test = test if test is None or isinstance(test, Batches) else Batches(test, "test")
    if is_sharded(model):
        return _sharded(model, start, Subject(name, model, {}, get_loss(loss), train, test, labels=dict(labels or {}),
                                              head=head, notes=dict(notes or {}), precision=precision), init)
    pinned = is_pinned(model)
    if pinned and dtype != "float32":
        raise InputError(f"dtype={dtype!r} came with a model that is quantised or spread over devices and cannot be "
                         "cast; leave dtype out, or give a model of floating-point weights on one device")
    owned = shared_copy(model) if pinned else copy.deepcopy(model).eval().requires_grad_(False).to(**place)
    result = Subject(name, owned, {}, get_loss(loss), train, test, engine or LocalEngine(), dict(labels or {}), head,
                     precision=precision, offload=offload)
    notes = dict(notes or {})
    if pinned:
        held = ", ".join(unreadable(owned))
        notes["end"] = (*notes.get("end", ()), "left on its devices and in its types"
                        + (f"; no floating-point weights at hand, and not measured: {held}" if held else ""))
    _check_finite(result.state, f"weights of {name!r}")
    _check_data(result)
    _check_runs(result)
    state = start.state_dict() if isinstance(start, nn.Module) else start
    if isinstance(state, (str, PathLike)):
        state, notes["start"] = read_start(state, result.state)
    notes |= {which: data.notes for which, data in (("train", train), ("test", test)) if data is not None}
    notes = {k: v for k, v in notes.items() if v}
    if pinned:
        started = started_in_place(result.state, [x.parameter for x in result.layers if not x.head], state)
        _check_finite(started, f"start's weights of {name!r}")
        return replace(result, start=started, notes=notes)
    heads = [next(layer.name for layer in result.layers if layer.head), *task_modules(owned)]
    skeleton = copy.deepcopy(owned)
    left_out = set(match(skeleton, dict(state), head=heads))
    drawn = frozenset(left_out) if init is not None else frozenset()
    if drawn:
        begun = copy.deepcopy(owned)
        match(begun, dict(init))
        skeleton.load_state_dict({k: v for k, v in begun.state_dict().items() if k in drawn}, strict=False)
    started = {k: v.to(device=place["device"]) for k, v in skeleton.state_dict().items() if k not in left_out - drawn}
    _check_finite(started, f"start's weights of {name!r}")
    return Subject(result.name, owned, started, result.loss, train, test, result.engine, result.labels, head, drawn,
                   notes, precision=precision, offload=offload)


def _sharded(model: nn.Module, start: nn.Module | Mapping[str, Tensor] | str | PathLike, result: Subject,
             init: Mapping[str, Tensor] | None) -> Subject:
    """`result` with a model that every rank holds a part of and with its start, which each reads as it needs it."""
    check_sharded(model)
    some = anchor(model)
    wanted = result.precision
    if wanted != FLOAT32 and (wanted != PRECISIONS["float64"] or some.dtype != wanted.weights):
        raise InputError(f"dtype={wanted.name!r} came with a sharded model of {some.dtype}, which cannot be cast here; "
                         "cast it before fully_shard, or leave dtype out")
    if init is not None:
        raise InputError("a state from before fine-tuning came with a sharded model; leave init out, and the head is "
                         "measured from the start or from zero")
    engine = Sharded(some.device)
    note = f"sharded over {engine.size} ranks and left there in its types"
    result = replace(result, engine=engine, notes={**result.notes, "end": (*result.notes.get("end", ()), note)})
    for data in filter(None, (result.train, result.test)):
        if engine.total(data.fingerprint != engine.once(lambda data=data: data.fingerprint)):
            raise InputError(f"the ranks came with different examples in {data.name!r}; give every rank the whole data "
                             "set, without a DistributedSampler: genmeasure cuts the batches itself")
    _check_finite(result.state, f"weights of {result.name!r}")
    _check_data(result)
    _check_runs(result)
    state, notes = start.state_dict() if isinstance(start, nn.Module) else start, dict(result.notes)
    if isinstance(state, (str, PathLike)):
        state, notes["start"] = read_start(state, result.state)
    started = fitting(result.state.parts, [x.parameter for x in result.layers if not x.head], state)
    started = Gathered(started, some.device, result.state.parts)
    _check_finite(started, f"start's weights of {result.name!r}")
    notes |= {which: data.notes for which, data in (("train", result.train), ("test", result.test)) if data is not None}
    return replace(result, start=started, notes={k: v for k, v in notes.items() if v})


def _check_data(subject: Subject) -> None:
    for data in filter(None, (subject.train, subject.test)):
        if not all(t.isfinite().all() for batch in data for t in batch.tensors() if t.is_floating_point()):
            raise InputError(f"the data set {data.name!r} holds NaN or infinite numbers; repair or drop these examples")


def _check_finite(state: Mapping[str, Tensor], what: str) -> None:
    for name, tensor in state.items():
        bad = (~torch.isfinite(tensor)).sum().item() if tensor.is_floating_point() else 0
        if bad:
            raise InputError(f"the {what} hold {bad} NaN or infinite numbers in {name!r}; "
                             "a finite checkpoint is needed")


PROBED = 4
"""Examples that are looked at to find out what kind of function the model is."""
REPEAT = {torch.float32: 1e-4, torch.float64: 1e-9}
"""What rounding may change between two calls on the same examples, relative to the largest output."""
REBATCH_PINNED = 1e-1
"""The same between batches of different size of a model in lower precision: a batch that is quantised as it comes is
rounded to 8 bits of its largest number. Of others see `Precision.kernels`: other kernels may carry them out."""


@contextlib.contextmanager
def _randomness_kept(device: torch.device) -> Iterator[None]:
    """A model that draws leaves the global generators as they were."""
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(state)


def _check_runs(subject: Subject) -> None:
    some = anchor(subject.model)
    with _randomness_kept(some.device):
        for data in filter(None, (subject.train, subject.test)):
            few = next(iter(data)).select(slice(PROBED)).to(some.device, some.dtype)
            _check_vocabulary(subject, data)
            outputs = _outputs(subject, data, few)
            shapes = (f"the model gives outputs of the shape {list(outputs.shape)} for {len(few)} examples of "
                      f"{data.name!r} with labels of the shape {list(few.targets.shape)}")
            _check_shapes(subject.loss, outputs, few.targets, shapes)
            _check_labels(subject, data, outputs.shape[-1])
            _check_loss(subject.loss, outputs, few.targets, shapes)
            _check_repeats(subject, data, few, outputs)
            _check_own_parameters(subject, few)
        _check_depends(subject)


def _check_vocabulary(subject: Subject, data: Batches) -> None:
    """Words by their index are within the model's embedding, known by its looks from transformers' models."""
    try:
        embedding = getattr(subject.model, "get_input_embeddings", lambda: None)()
    except NotImplementedError:  # models of transformers that take no words
        return
    if not isinstance(embedding, nn.Embedding):
        return
    largest = max((int(batch.inputs["input_ids"].max()) for batch in data
                   if isinstance(batch.inputs, dict) and "input_ids" in batch.inputs), default=0)
    if largest >= embedding.num_embeddings:
        raise InputError(f"the tokens of {data.name!r} go up to {largest}, but the model knows "
                         f"{embedding.num_embeddings}; take the tokenizer that belongs to the model")


@torch.no_grad()
def _outputs(subject: Subject, data: Batches, batch: Batch) -> Tensor:
    try:
        with subject.precision.autocast(anchor(subject.model).device):
            outputs = forward(subject.model, batch)
    except Exception as error:  # a model may raise anything for inputs that it was not written for
        raise InputError(f"the model {type(subject.model).__name__} does not run on {data.name!r} "
                         f"({type(error).__name__}: {(str(error).splitlines() or [''])[0]}); "
                         "give inputs of the shape and type that it was trained on") from error
    if not isinstance(outputs, Tensor):
        raise InputError(f"the model {type(subject.model).__name__} gives a {type(outputs).__name__}; wrap it in a "
                         "module that gives a tensor, a tuple whose first entry is one, or something with .logits")
    return outputs


def _check_shapes(loss: Loss, outputs: Tensor, targets: Tensor, shapes: str) -> None:
    if loss.classification and (outputs.ndim != 2 or len(outputs) != len(targets) or targets.ndim != 1):
        remedy = ("take token-cross-entropy where every token has a label, or next-token-cross-entropy for a causal "
                  "language model" if outputs.ndim == 3 else
                  "take binary-cross-entropy for several labels per example, or squared for a regression"
                  if outputs.ndim == targets.ndim == 2 else "give a model whose outputs are [batch, classes]")
        raise InputError(f"{shapes}, but {loss.name} needs one row of scores and one label per example; {remedy}")
    if loss in TOKEN_LOSSES and (outputs.ndim != 3 or outputs.shape[:2] != targets.shape):
        raise InputError(f"{shapes}, but {loss.name} needs outputs [batch, tokens, classes] and labels [batch, "
                         "tokens]; take cross-entropy where an example has one label, else give one label per token")


TOKEN_LOSSES = (LOSSES["token-cross-entropy"], LOSSES["next-token-cross-entropy"])


def _check_labels(subject: Subject, data: Batches, classes: int) -> None:
    loss, numbers = subject.loss, torch.cat([targets.flatten() for targets in data.targets])
    scale(loss, data)
    if loss == LOSSES["binary-cross-entropy"] and (numbers.min() < 0 or numbers.max() > 1):
        raise InputError(f"the labels of {data.name!r} lie in {numbers.min():g}..{numbers.max():g}; {loss.name} needs "
                         "labels in 0..1")
    if not loss.classification and loss not in TOKEN_LOSSES:
        return
    if numbers.is_floating_point():
        raise InputError(f"labels of type {numbers.dtype} came in {data.name!r}; {loss.name} needs "
                         "whole-number class labels")
    rest = ""
    if loss in TOKEN_LOSSES:
        numbers, rest = numbers[numbers != IGNORED], f", or {IGNORED} where there is none"
    if numbers.min() < 0 or numbers.max() >= classes:
        raise InputError(f"the labels of {data.name!r} lie in {int(numbers.min())}..{int(numbers.max())} but the "
                         f"model has {classes} outputs; labels must be 0..{classes - 1}{rest}")


def _check_loss(loss: Loss, outputs: Tensor, targets: Tensor, shapes: str) -> None:
    try:
        values = loss(outputs, targets)
    except Exception as error:  # a loss of one's own may raise anything
        raise InputError(f"{shapes}, on which the loss {loss.name} fails ({type(error).__name__}: "
                         f"{(str(error).splitlines() or [''])[0]}); choose a loss for such outputs and "
                         "labels") from error
    if values.shape != (len(targets),):
        raise InputError(f"the loss {loss.name} gives values of the shape {list(values.shape)} for {len(targets)} "
                         "examples; it must give one number per example, so take no mean over the batch")


def _check_repeats(subject: Subject, data: Batches, few: Batch, outputs: Tensor) -> None:
    """The outputs of an example are a function of this example alone."""
    largest = outputs.abs().nan_to_num(0.0, 0.0).max().item()
    changed = _difference(_outputs(subject, data, few), outputs)
    if changed > REPEAT[subject.precision.weights] * largest:
        raise InputError(f"two calls of the model on the same {len(few)} examples of {data.name!r} gave outputs that "
                         f"differ by up to {changed:.3g} (the largest is {largest:.3g}), so that differences between "
                         "losses would be differences between draws; switch off what draws at random in evaluation "
                         "mode, such as F.dropout without training=self.training")
    half = (len(few) + 1) // 2
    if half == len(few):
        return
    changed = _difference(_outputs(subject, data, few.select(slice(half))), outputs[:half])
    if changed > (REBATCH_PINNED if is_pinned(subject.model) else subject.precision.kernels) * largest:
        culprits = [name for name, m in subject.model.named_modules()
                    if isinstance(m, BATCH_NORMS) and m.running_mean is None]
        blame = f", because of {', '.join(culprits[:3])} without running statistics" if culprits else ""
        raise InputError(f"the outputs of an example of {data.name!r} change by up to {changed:.3g} (the largest is "
                         f"{largest:.3g}) with the other examples in its batch{blame}; the loss of an example must "
                         "depend on this example alone: give BatchNorm running statistics, or normalise over one "
                         "example at a time")


def _difference(these: Tensor, those: Tensor) -> float:
    """The largest difference; infinite where the shapes differ, and none where both are NaN."""
    return (these - those).abs().nan_to_num(0.0).max().item() if these.shape == those.shape else math.inf


def _check_own_parameters(subject: Subject, few: Batch) -> None:
    """All that could be learned is registered with the model: its own parameters are frozen, so nothing is left."""
    sharded = is_sharded(subject.model)  # what it gathers requires gradients and is no parameter afterwards
    with torch.set_grad_enabled(not sharded):
        outputs = forward(subject.model, few)
    with torch.enable_grad():
        found = _leaves(outputs), _leaves(subject.loss(outputs.detach(), few.targets))
    for what, tensors in zip(("outputs of the model", f"loss {subject.loss.name}"), found, strict=True):
        if tensors:
            shapes = ", ".join(str(list(t.shape)) for t in tensors[:3]) + (", …" if len(tensors) > 3 else "")
            raise InputError(f"the {what} depend{'s' * what.startswith('loss')} on {len(tensors)} tensors that require "
                             f"gradients and are no parameters of the model (of the shapes {shapes}); register them "
                             "with the model, as nn.Parameter or in an nn.ModuleList, or detach them")


def _leaves(tensor: Tensor) -> list[Tensor]:
    """The tensors that require gradients and that `tensor` was computed from."""
    if tensor.requires_grad and tensor.grad_fn is None:
        return [tensor]
    return [node.variable for node in nodes([tensor]) if hasattr(node, "variable")]


def _doubled(risk: Risk, batch: Batch) -> Tensor:
    """The outputs with twice the layers' weights."""
    if not risk.sharded:
        return risk.outputs({k: 2 * w for k, w in risk.weights.items()}, batch)
    with moving(risk, {x.name: lambda w: 2 * w for x in risk.layers}, {x.name: units(risk.model, x)
                                                                      for x in risk.layers}):
        return risk.outputs({}, batch)


def _check_depends(subject: Subject) -> None:
    risk = subject.risk
    few = risk.place(next(iter(subject.train)).select(slice(PROBED)))
    if risk.sharded or is_pinned(subject.model):  # what has no derivative may still be moved
        with torch.no_grad():
            changed = not torch.equal(_doubled(risk, few), risk.outputs({}, few))
        if not changed:
            raise InputError(f"the outputs of {type(subject.model).__name__} do not change with any of the "
                             f"{len(risk.layers)} layers' weights; give a model whose forward pass reads its weights")
        return
    with torch.enable_grad():
        outputs = risk.outputs({k: w.detach().requires_grad_() for k, w in risk.weights.items()}, few)
    if not outputs.requires_grad:
        raise InputError(f"the outputs of {type(subject.model).__name__} have no derivative with respect to any of the "
                         f"{len(risk.layers)} layers' weights; remove torch.no_grad, detach or .data from its forward "
                         "pass")


def _restored(_: ModuleFiles) -> Subject:
    return object.__new__(Subject)


@dataclass(frozen=True)
class SubjectFiles:
    """A subject by the names of its files, small enough to travel to another process.

    model: a builder (`torchvision:resnet18`, `pkg.module:function`, ...). start, end: checkpoint files, folders or
    names (see `checkpoints.locate`); the end may be an adapter, whose base the start is. train, test: data (a manifest
    name, `FILE.npz#train`, `pkg.module:function`). labels: pairs for the readings' label columns. rename:
    `PATTERN=REPLACEMENT` or tables of these, from the checkpoints' names to the model's. head_center: `zero`, or `init`
    to measure a head that the start lacks from what the model draws with `seed`.
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
    rename: tuple[str, ...] = ()
    head_center: str = "zero"
    seed: int = 0
    offload: bool = False

    def load(self, engine: Engine | None = None) -> Subject:
        """Read everything and build the subject; bad input raises `InputError`."""
        if self.head_center not in ("zero", "init"):
            raise InputError(f"the head center {self.head_center!r} came; choose zero or init")
        model = build(self.model)
        init = build(self.model, seed=self.seed).state_dict() if self.head_center == "init" else None
        pair = read_pair(self.start, self.end, model.state_dict(), table(self.rename))
        match(model, pair.end)
        train, test = (load_for(self.model, spec, loss=self.loss, batch_size=self.batch_size) if spec else None
                       for spec in (self.train, self.test))
        return subject(model, pair.start, train, test, loss=self.loss, name=self.name, device=self.device,
                       dtype=self.dtype, head=self.head, labels=dict(self.labels), engine=engine, init=init,
                       notes=pair.notes, offload=self.offload)
