"""Fine-tuning algorithms inside a `transformers.Trainer`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from genmeasure.data.batches import Batch
from genmeasure.errors import InputError
from genmeasure.training.algorithm import Algorithm, get_algorithm
from genmeasure.training.context import Context, unwrapped
from genmeasure.training.losses.cross_entropy import CrossEntropy
from genmeasure.training.pieces import Objective

STATE_FILE = "algorithm.safetensors"


class AlgorithmMixin:
    """Put in front of `transformers.Trainer` or a class of its kind: `class MyTrainer(AlgorithmMixin, Trainer)`.

    algorithm: an `Algorithm` or its registered name. head, confusion: as for `genmeasure.training.loop.fine_tune`.
    The weights of `model` when the trainer is made are the start. Whatever the trainer does stays as it is: mixed
    precision, accumulation (a step's perturbation is that of all its minibatches together), clipping, checkpoints,
    several devices. The loss is the trainer's own unless the algorithm has one, which then takes `outputs.logits`
    [batch, classes] and `labels` [batch]. Draws depend on `args.seed` and the number of the step alone, so that a run
    that is resumed draws the same. Raises `InputError` for an adapter or a rule that picks an epoch (the trainer has
    its own), for `model_init`, and for what a piece lacks.
    """

    def __init__(self, *args: Any, algorithm: Algorithm | str, head: str | None = None,
                 confusion: Tensor | None = None, **kwargs: Any):
        algorithm = get_algorithm(algorithm)
        for place, remedy in (("adapter", "give the trainer a model with adapters, such as one of peft"),
                              ("selection", "set load_best_model_at_end and an EarlyStoppingCallback")):
            if getattr(algorithm, place) is not None:
                raise InputError(f"an algorithm with the {place} {type(getattr(algorithm, place)).__name__} came for a "
                                 f"transformers.Trainer; {remedy}")
        super().__init__(*args, **kwargs)
        if self.model is None:
            raise InputError("a trainer came with model_init, so that its start is not known; pass model=…")
        context = Context.of(self.model, head=head, confusion=confusion,
                             epochs=math.ceil(self.args.num_train_epochs))
        self.algorithm = algorithm.prepare(context)
        self._waiting: list[dict[str, Any]] = []
        self.add_callback(_Pieces(self))

    def training_step(self, model: nn.Module, inputs: Mapping[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Waits for all minibatches of a step; then the probe takes its gradient over them."""
        self._waiting.append(self._drawn(model, inputs))
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        waiting, self._waiting = self._waiting, []
        generator = torch.Generator(self.args.device).manual_seed((self.args.seed << 32) + self.state.global_step)
        scaler = self.accelerator.scaler
        scale = 1.0 if scaler is None else scaler.get_scale()
        value = self.algorithm.probe(model, _Minibatches(self, model, waiting, num_items_in_batch, scale), generator)
        if self.algorithm.penalty is not None:
            self.algorithm.penalty(model).backward()
        if scale != 1:
            for p in model.parameters():
                if p.grad is not None:
                    p.grad *= scale  # the trainer's optimizer divides by it again when it looks for overflow
        return value

    def _drawn(self, model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if isinstance(self.algorithm.loss, CrossEntropy):
            return dict(inputs)
        batch = Batch.of(self._prepare_inputs(dict(inputs)))
        generator = torch.Generator().manual_seed((self.args.seed << 32) + self.state.global_step + len(self._waiting))
        drawn = self.algorithm.loss.draw(batch, generator, model)
        return {**drawn.inputs, "labels": drawn.targets}

    def compute_loss(self, model: nn.Module, inputs: Mapping[str, Any], return_outputs: bool = False,
                     num_items_in_batch: Any = None) -> Any:
        if isinstance(self.algorithm.loss, CrossEntropy) or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        losses = self.algorithm.loss(outputs.logits, labels)
        # what the trainer divides by itself, it does not count for us
        shared = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        value = losses.sum() / num_items_in_batch if shared else losses.mean()
        return (value, outputs) if return_outputs else value


class _Minibatches(Objective):
    """The loss over all minibatches of one step, through the trainer's own forward and backward pass."""

    def __init__(self, trainer: AlgorithmMixin, model: nn.Module, minibatches: list[dict[str, Any]], count: Any,
                 scale: float):
        self.trainer, self.model, self.minibatches = trainer, model, minibatches
        self.count, self.scale = count, scale

    def _share(self) -> float:
        """The trainer divides by the number of minibatches, unless its loss is divided by the number of labels."""
        shared = self.trainer.model_accepts_loss_kwargs and self.count is not None
        return 1.0 if shared else 1 / len(self.minibatches)

    def graph(self) -> Tensor:
        with self.trainer.compute_loss_context_manager():
            losses = [self.trainer.compute_loss(self.model, self.trainer._prepare_inputs(inputs),
                                                num_items_in_batch=self.count) for inputs in self.minibatches]
        return torch.stack(losses).sum() * self._share()

    def gradient(self, weight: float = 1.0) -> Tensor:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        before = [p.grad for p in parameters]
        for p in parameters:
            p.grad = None
        # the class behind the mixin: forward, scaling and backward as the trainer does them
        losses = [super(AlgorithmMixin, self.trainer).training_step(self.model, inputs, self.count)
                  for inputs in self.minibatches]
        with torch.no_grad():
            for p, old in zip(parameters, before, strict=True):
                if p.grad is not None and weight != self.scale:
                    p.grad *= weight / self.scale
                if old is not None:
                    p.grad = old if p.grad is None else old + p.grad
        return torch.stack(losses).sum().detach()


class AlgorithmCallback(TrainerCallback):
    """Enforces a constraint and keeps an average in a `transformers.Trainer` whose gradient is its own.

    algorithm: prepared for the model (`Algorithm.prepare(Context.of(model))`), of which the constraint and the average
    are used. The average is at hand as `algorithm.average.weights()`.
    """

    def __init__(self, algorithm: Algorithm):
        self.algorithm, self.epoch = algorithm, 1

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.epoch = int(state.epoch or 0) + 1
        for piece in self.algorithm.pieces().values():
            piece.begin_epoch(self.epoch, _no_predictions)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        if self.algorithm.constraint is not None:
            self.algorithm.constraint(model)
        if self.algorithm.average is not None:
            self.algorithm.average.after_step(unwrapped(model), self.epoch)

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        if self.algorithm.average is not None:
            self.algorithm.average.after_epoch(unwrapped(model), self.epoch)


class _Pieces(AlgorithmCallback):
    """Besides, what the pieces remember goes into the trainer's checkpoints."""

    def __init__(self, trainer: AlgorithmMixin):
        super().__init__(trainer.algorithm)
        self.trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        tensors = {f"{place}.{name}": tensor.contiguous() for place, piece in self.algorithm.pieces().items()
                   for name, tensor in piece.state().items()}
        if tensors and state.is_world_process_zero:
            save_file(tensors, Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE_FILE)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE_FILE
        if state.global_step and file.exists():
            tensors = load_file(file)
            for place, piece in self.algorithm.pieces().items():
                piece.load({name.removeprefix(f"{place}."): tensor for name, tensor in tensors.items()
                            if name.startswith(f"{place}.")})


class AlgorithmTrainer(AlgorithmMixin, Trainer):
    """A `transformers.Trainer` that fine-tunes with an algorithm; see `AlgorithmMixin`."""


def _no_predictions() -> Tensor:
    raise InputError("an algorithm that looks at its predictions on the training data came for a transformers.Trainer, "
                     "which does not give them; use genmeasure.training.loop.fine_tune")
