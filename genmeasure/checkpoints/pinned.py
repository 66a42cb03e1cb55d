"""Models that must stay as they are: quantised, or spread over devices."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from genmeasure.errors import InputError

MARKS = ("hf_device_map", "hf_quantizer", "quantization_method", "is_quantized")
"""Attributes that transformers leaves on models which it quantised or spread."""
PACKED = "_packed_params"
"""Where torch's quantised modules keep their weights."""
QUANTISED = (torch.int8, torch.uint8)


def is_pinned(model: nn.Module) -> bool:
    """Whether the model may be neither moved nor cast."""
    if any(getattr(model, mark, None) for mark in MARKS) or unreadable(model):
        return True
    return len({p.device for p in model.parameters()}) > 1


def unreadable(model: nn.Module) -> list[str]:
    """Names of weights that are no floating-point numbers or not at hand, in the order of the modules."""
    found = []
    for name, module in model.named_modules():
        own = [(k, p) for k, p in module._parameters.items()
               if p is not None and (p.is_meta or not (p.is_floating_point() or p.is_complex()))]
        own += [(k, b) for k, b in module._buffers.items() if b is not None and (b.is_meta or b.dtype in QUANTISED)]
        keys = [k for k, _ in own]
        if hasattr(module, PACKED) and not name.endswith(PACKED):  # a module within the module holds them
            keys.append("weight")
        found += [f"{name}.{k}".removeprefix(".") for k in keys]
    return found


def anchor(model: nn.Module) -> Tensor:
    """The first weight of floating-point numbers that are at hand; inputs go to its device, in its dtype."""
    found = next((p for p in model.parameters() if p.is_floating_point() and not p.is_meta), None)
    if found is None:
        raise InputError(f"the model {type(model).__name__} has no floating-point weight at hand; there is nothing to "
                         "move without one")
    return found


def shared_copy(model: nn.Module) -> nn.Module:
    """The model in evaluation mode with modules of its own, whose weights are the same memory and need no gradient."""
    memory: dict[int, Any] = {id(b): b for b in model.buffers()}
    for weight in model.parameters():
        plain = type(weight) is nn.Parameter
        memory[id(weight)] = nn.Parameter(weight.detach(), requires_grad=False) if plain else weight
    return copy.deepcopy(model, memory).eval()


def readable(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """What can be read of a state dict: quantised modules put other things there."""
    return {k: v.detach() for k, v in state.items() if isinstance(v, Tensor) and not v.is_meta}


def started_in_place(state: Mapping[str, Tensor], needed: Iterable[str],
                     start: Mapping[str, Any]) -> dict[str, Tensor]:
    """As `fitting`, each tensor on the device of the model's."""
    return {k: v.to(state[k].device) for k, v in fitting(state, needed, start).items()}


def fitting(state: Mapping[str, Tensor], needed: Iterable[str], start: Mapping[str, Any]) -> dict[str, Tensor]:
    """The start's tensors by name where they have the shape of the model's.

    Raises `InputError` where one of `needed` is not among them.
    """
    found = {k: v for k, v in readable(start).items() if k in state and v.shape == state[k].shape}
    lacking = [name for name in needed if name not in found]
    if lacking:
        raise InputError(f"the start lacks {', '.join(lacking[:3])}{', …' * (len(lacking) > 3)} in the model's shape; "
                         "give the start in the model's own names, as a module or a state dict")
    return found
