"""A fine-tuning algorithm in place of an optimizer, in a loop of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from genmeasure.errors import InputError
from genmeasure.training.algorithm import Algorithm, get_algorithm
from genmeasure.training.context import Context
from genmeasure.training.pieces import Objective
from genmeasure.training.probes.here import Here


class AlgorithmOptimizer(torch.optim.Optimizer):
    """`optimizer` with the probe, the penalty, the constraint and the average of an algorithm around its step.

    The loss is the loop's own; pieces such as `losses.consistent` may serve in it. One step is

        optimizer.step(closure)          the closure clears the gradients, computes the loss, calls backward() and
                                         returns the loss, as `torch.optim` asks; it is called several times
        optimizer.step(loss=function)    the function returns the mean loss of the minibatch with a graph

    and, for an algorithm that takes the plain gradient, `optimizer.step()` after a backward pass. Parameter groups,
    state and `state_dict` are those of `optimizer`, so that schedulers may hold either of the two.

    algorithm: or its registered name, for the defaults. model: the module that the optimizer trains, perhaps wrapped
    for several devices; its weights now are the start. context: facts of the run; by default taken from the model.
    generator: of the probe's draws, on the parameters' device; ranks that train one model need the same seed.
    scaler: a `torch.amp.GradScaler`, for float16; `step` then also calls its `step` and `update`.
    Raises `InputError` for an algorithm with an adapter or with a rule that picks an epoch, which need a loop that
    knows of them, and for a step without what the probe needs.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module, algorithm: Algorithm | str, *,
                 context: Context | None = None, generator: Generator | None = None,
                 scaler: torch.amp.GradScaler | None = None):
        algorithm = get_algorithm(algorithm)
        for place in ("adapter", "selection"):
            if getattr(algorithm, place) is not None:
                raise InputError(f"an algorithm with the {place} {type(getattr(algorithm, place)).__name__} came; an "
                                 "optimizer cannot carry it out, use genmeasure.training.loop.fine_tune")
        self.optimizer, self.model, self.generator, self.scaler = optimizer, model, generator, scaler
        self.algorithm = algorithm.prepare(context or Context.of(model))
        self.epoch = 1
        super().__init__(optimizer.param_groups, optimizer.defaults)
        # shared, so that a scheduler on either of the two changes both
        self.param_groups, self.state = optimizer.param_groups, optimizer.state

    def begin_epoch(self, number: int, predict: Callable[[], Tensor] | None = None) -> None:
        """Tell the pieces that the epoch with this number, from 1, begins; schedules of a perturbation need it."""
        if self.algorithm.average is not None and number > self.epoch:
            self.algorithm.average.after_epoch(self.model, self.epoch)
        self.epoch = number
        for piece in self.algorithm.pieces().values():
            piece.begin_epoch(number, predict or _no_predictions)

    def step(self, closure: Callable[[], Any] | None = None, *, loss: Callable[[], Tensor] | None = None) -> Any:
        """One step; what the closure returned where the algorithm looked first, or the algorithm's loss, detached."""
        if loss is not None:
            value = self.algorithm.probe(self.model, ScaledLoss(self.model, loss, self.scaler), self.generator)
        elif closure is None:
            if not isinstance(self.algorithm.probe, Here):
                raise InputError(f"a step came without a loss, and {type(self.algorithm.probe).__name__} takes the "
                                 "gradient at other weights than the present ones; pass a closure or loss=…")
            value = None
        elif self.scaler is not None:
            raise InputError("a closure came together with a scaler, whose scaling the closure hides; pass loss=…")
        else:
            value = self.algorithm.probe(self.model, ClosureLoss(self.model, closure), self.generator)
        with torch.enable_grad():
            if self.algorithm.penalty is not None:
                self.algorithm.penalty(self.model).backward()
        self._advance(scaled=loss is not None)
        if self.algorithm.constraint is not None:
            self.algorithm.constraint(self.model)
        if self.algorithm.average is not None:
            self.algorithm.average.after_step(self.model, self.epoch)
        return value

    def _advance(self, *, scaled: bool) -> None:
        if self.scaler is None or not scaled:
            self.optimizer.step()
            return
        scale = self.scaler.get_scale()
        for p in self.model.parameters():
            if p.grad is not None:
                p.grad *= scale  # the scaler divides by it again when it looks for overflow
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        # the base class adds its groups when it is made, and those are the optimizer's already
        if hasattr(self, "param_groups") and self.param_groups is self.optimizer.param_groups:
            self.optimizer.add_param_group(param_group)
        else:
            self.param_groups.append(param_group)

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state_dict)
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state


class ScaledLoss(Objective):
    """The loss that a function returns with a graph; gradients are those of the loss itself, scaler or not."""

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor], scaler: torch.amp.GradScaler | None = None):
        self.model, self.loss, self.scaler = model, loss, scaler

    def graph(self) -> Tensor:
        with torch.enable_grad():
            return self.loss()

    def value(self) -> Tensor:
        with torch.no_grad():
            return self.loss()

    def gradient(self, weight: float = 1.0) -> Tensor:
        if self.scaler is None:
            with torch.enable_grad():
                return super().gradient(weight)
        with _added(self.model, weight / self.scaler.get_scale()), torch.enable_grad():
            value = self.loss()
            self.scaler.scale(value).backward()
        return value.detach()


class ClosureLoss(Objective):
    """The loss behind a closure that clears the gradients and calls backward() itself."""

    def __init__(self, model: nn.Module, closure: Callable[[], Any]):
        self.model, self.closure = model, closure

    def graph(self) -> Tensor:
        raise InputError("an algorithm that differentiates the gradient came with a closure, which calls backward() "
                         "itself; pass loss=…, a function that returns the loss with a graph")

    def value(self) -> Tensor:
        return self.gradient(0.0)

    def gradient(self, weight: float = 1.0) -> Tensor:
        with _added(self.model, weight), torch.enable_grad():
            value = self.closure()
        if value is None:
            raise InputError("a closure returned None; it must return the loss after it has called backward()")
        return torch.as_tensor(value).detach()


class _added:
    """Gradients computed inside the block, times `weight`, are added to those of before; 0 leaves those of before."""

    def __init__(self, model: nn.Module, weight: float):
        self.parameters, self.weight = [p for p in model.parameters() if p.requires_grad], weight

    def __enter__(self):
        self.before = [p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = None

    def __exit__(self, kind, *_):
        with torch.no_grad():
            for p, before in zip(self.parameters, self.before, strict=True):
                if kind is not None or self.weight == 0 or p.grad is None:
                    p.grad = before
                else:
                    p.grad = p.grad * self.weight if self.weight != 1 else p.grad
                    p.grad = p.grad if before is None else before + p.grad


def _no_predictions() -> Tensor:
    raise InputError("an algorithm that looks at its predictions on the training data came in a loop that did not "
                     "give them; pass predict=… to begin_epoch")
