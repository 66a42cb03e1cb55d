"""Trainable factors on a model's weights: attached, trained, merged."""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from genmeasure.errors import InputError
from genmeasure.training.context import Context
from genmeasure.training.groups import layer_weights
from genmeasure.training.pieces import Adapter


class Change(nn.Module, ABC):
    """A parametrization W -> W + dW, whose parameters make up dW; dW is 0 to begin with."""

    @abstractmethod
    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the layer uses, of the same shape."""


class FactorAdapter(Adapter, ABC):
    """Trains `change(weight)` of the named weights and, as they are, the parameters of the head; all else is frozen.

    names: of the weights. context: whose head is trained in full. After `merge`, `changes` has the factors by name.
    """

    def __init__(self, names: Sequence[str], context: Context):
        self.names, self.context = tuple(names), context
        self.changes: dict[str, Change] = {}
        self._trainable: dict[str, bool] = {}

    @abstractmethod
    def change(self, weight: Tensor, generator: Generator) -> Change:
        """A change for one weight, drawn from a generator on the CPU, in float32."""

    def attach(self, model: nn.Module, generator: Generator) -> None:
        self._trainable = {name: p.requires_grad for name, p in model.named_parameters()}
        for name, p in model.named_parameters():
            p.requires_grad_(p.requires_grad and self.context.in_head(name))
        for name in self.names:
            module, last = _owner(model, name)
            weight = getattr(module, last)
            change = self.change(weight.detach(), generator).to(weight.device, weight.dtype)
            parametrize.register_parametrization(module, last, change)
            self.changes[name] = change

    def merge(self, model: nn.Module) -> None:
        for name in self.names:
            module, last = _owner(model, name)
            parametrize.remove_parametrizations(module, last)
            _reorder(module, [n.removeprefix(f"{name.rpartition('.')[0]}.") for n in self._trainable])
        for name, p in model.named_parameters():
            p.requires_grad_(self._trainable[name])


def chosen_weights(context: Context, patterns: str | Sequence[str]) -> list[str]:
    """The names of the weights outside of the head that factors go on: of linear, convolutional and attention layers
    that require gradients and fit one of the patterns, such as "*", "layer4.*" or "*.query,*.value".

    A pattern fits the name of a parameter or of its module. Raises `InputError` when nothing fits.
    """
    patterns = patterns.split(",") if isinstance(patterns, str) else list(patterns)
    parameters = dict(context.model.named_parameters())
    able = [name for name, module in layer_weights(context.model).items()
            if not (context.in_head(name) or isinstance(module, nn.RNNBase)) and parameters[name].requires_grad]
    found = [name for name in able if any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns
                                          for text in (name, name.rpartition(".")[0]))]
    if not found:
        raise InputError(f"no trainable layer of {type(context.model).__name__} outside of the head fits "
                         f"{', '.join(patterns)}; layers that can take factors are: {', '.join(able) or 'none'}")
    return found


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, last = name.rpartition(".")
    return model.get_submodule(path), last


def _reorder(module: nn.Module, names: Sequence[str]) -> None:
    """Taking factors off registers a weight behind the module's other parameters; put them back in order."""
    own = dict(module.named_parameters(recurse=False))
    for name in names:
        if name in own:
            delattr(module, name)
            module.register_parameter(name, own[name])
