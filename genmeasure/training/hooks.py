"""A constraint behind any optimizer's step, for a training loop of one's own."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from genmeasure.training.context import Context
from genmeasure.training.pieces import Constraint, Recipe


def constrain_steps(optimizer: Optimizer, model: nn.Module, constraint: Constraint | Recipe[Constraint], *,
                    head: str | None = None) -> RemovableHandle:
    """Project the model's weights after every `optimizer.step()`, until `remove()` of the returned handle.

    constraint: such as `LayerBalls(0.5)`; a recipe takes the model's present weights as the start, so call this before
    training, with the model on its device. To resume, prepare it with a `Context` of the model at its start and pass
    the result. head: path of the module put on for the new task, by default as in `Context.of`; for a recipe only.
    Steps that `torch.amp.GradScaler` skips change nothing, gradient accumulation projects once per step, and `model`
    may be wrapped for several devices.
    """
    if isinstance(constraint, Recipe):
        constraint = constraint.prepare(Context.of(model, head=head))
    return optimizer.register_step_post_hook(lambda optimizer, args, kwargs: constraint(model))
