"""The facts of one run that pieces may need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from genmeasure.data.batches import Batch
from genmeasure.errors import InputError, unknown

if TYPE_CHECKING:
    from genmeasure.training.settings import Settings

HEAD_TYPES = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class Context:
    """The facts of one run.

    model: the model about to be trained, for its structure. start: its parameters and buffers before the first step,
    by name. head: name of the module that was put on for the new task. classes: number of outputs. confusion: [k, k],
    P(given label | true label) with the true label in rows, or None. examples: all training examples, or None outside
    `fine_tune`. epochs: how many there will be, or None. reference: carries out plain fine-tuning from the same start
    with the same settings, once however often it is called, and returns its model; None outside `fine_tune`.
    settings: how the run is carried out, for pieces that go with one optimizer only; None outside `fine_tune`.
    """

    model: nn.Module
    start: Mapping[str, Tensor]
    head: str
    classes: int
    confusion: Tensor | None = None
    examples: Batch | None = None
    epochs: int | None = None
    reference: Callable[[], nn.Module] | None = None
    settings: Settings | None = None

    @classmethod
    def of(cls, model: nn.Module, *, classes: int | None = None, head: str | None = None,
           confusion: Tensor | None = None, examples: Batch | None = None, epochs: int | None = None,
           reference: Callable[[], nn.Module] | None = None, settings: Settings | None = None) -> Context:
        """Take a snapshot of `model`, or of the module inside its wrappers for several devices.

        head: default the last linear or convolutional module in registration order. classes: default the width of
        the head. Raises `InputError` for a head that does not exist, or whose width is unknown.
        """
        model = unwrapped(model)
        head = last_layer(model) if head is None else head
        modules = dict(model.named_modules())
        if head not in modules:
            raise unknown("head module", head, [name for name in modules if name])
        if classes is None:
            classes = getattr(modules[head], "out_features", getattr(modules[head], "out_channels", None))
        if classes is None:
            raise InputError(f"the head {head!r} is a {type(modules[head]).__name__}, whose number of outputs is not "
                             "known; pass classes=…")
        start = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        confusion = None if confusion is None else torch.as_tensor(confusion, dtype=torch.float64)
        return cls(model, start, head, classes, confusion, examples, epochs, reference, settings)

    def to(self, device: torch.device | str) -> Context:
        """With the start on a device, where the model has been moved."""
        return replace(self, start={name: tensor.to(device) for name, tensor in self.start.items()})

    def in_head(self, name: str) -> bool:
        """Whether a parameter belongs to the head."""
        return self.head == "" or name.startswith(f"{self.head}.")


def last_layer(model: nn.Module) -> str:
    """The name of the last linear or convolutional module in registration order."""
    names = [name for name, module in model.named_modules() if isinstance(module, HEAD_TYPES)]
    if not names:
        raise InputError(f"no linear or convolutional module was found in {type(model).__name__}; name its last "
                         "layer with head=…")
    return names[-1]


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside wrappers for several devices, which put a prefix on every name."""
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    return model
