"""Models whose weights are sharded over ranks by `torch.distributed.fsdp.fully_shard`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genmeasure.errors import InputError

WHOLE = "give the model unsharded, with the full_tensor() of each weight loaded into it"


def is_sharded(model: nn.Module) -> bool:
    """Whether weights of the model are spread over ranks, by whatever means."""
    return any(_is_unit(m) or type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()) or any(
        _is_spread(p) for p in model.parameters())


def check_sharded(model: nn.Module) -> None:
    """Raise `InputError` unless `fully_shard` alone spread the weights, over all ranks, in evaluation mode."""
    reshard(model)
    spread = {k: p for k, p in model.named_parameters() if _is_spread(p)}
    if not spread or any(not _is_unit(unit(model, path)) for path in spread):
        raise InputError("the model's weights are spread over ranks by something other than fully_shard; shard it by "
                         f"torch.distributed.fsdp.fully_shard alone, or {WHOLE}")
    for path, parameter in spread.items():
        cuts, size = sum(not p.is_replicate() for p in parameter.placements), parameter.device_mesh.size()
        if cuts > 1 or size != dist.get_world_size():
            raise InputError(f"the weight {path!r} is cut {cuts} times over {size} of {dist.get_world_size()} ranks; "
                             "shard the model by fully_shard alone and over all ranks, without tensor parallelism, or "
                             f"{WHOLE}")
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise InputError(f"a sharded model came with {len(training)} modules in training mode ({training[0]}); it "
                         "cannot be copied, so call its eval() first")


def unit(model: nn.Module, path: str) -> nn.Module:
    """The module that gathers the weight at `path` when it starts and lets it go when it ends; else the model."""
    names = path.split(".")[:-1]
    above = [model.get_submodule(".".join(names[:depth])) for depth in range(len(names), -1, -1)]
    return next((module for module in above if _is_unit(module)), model)


def reshard(model: nn.Module) -> None:
    """Let every rank hold its own part alone, as before a forward pass: the root's weights stay gathered after one."""
    for module in model.modules():
        if _is_unit(module):
            module.reshard()


@torch.inference_mode(False)
@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """The tensor, gathered from all ranks where it is spread; all of them must call this."""
    return tensor.full_tensor() if _is_spread(tensor) else tensor


class Gathered(Mapping[str, Tensor]):
    """Tensors by name, each gathered and on `device` while it is used, so that one whole tensor takes memory at a time.

    All ranks must look up the same names in the same order. parts: as this rank holds them. like: tensors of the dtypes
    that are wanted, by the same names; as they are by default.
    """

    def __init__(self, parts: Mapping[str, Tensor], device: torch.device, like: Mapping[str, Tensor] | None = None):
        self.parts, self.device, self.like = parts, device, parts if like is None else like

    def __getitem__(self, name: str) -> Tensor:
        return whole(self.parts[name]).to(self.device, self.like[name].dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def __contains__(self, name: object) -> bool:
        return name in self.parts


def _is_unit(module: nn.Module) -> bool:
    fsdp = sys.modules.get("torch.distributed.fsdp")  # where nobody imported it, nothing is sharded
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def _is_spread(tensor: Tensor) -> bool:
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(tensor, tensors.DTensor)
