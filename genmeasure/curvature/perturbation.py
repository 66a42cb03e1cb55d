"""Weights moved while they are used: a moved layer exists only while its module runs, and no weight is written to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from genmeasure.checkpoints.sharded import unit
from genmeasure.data.batches import Batch
from genmeasure.errors import InputError
from genmeasure.layers import Layer
from genmeasure.risk import FORWARD, Risk

Move = Callable[[Tensor], Tensor]
"""A layer's weight to the weight that takes its place, of the same shape and dtype."""

Place = tuple[nn.Module, nn.Module, str]
"""The module that runs, the module that holds the weight, its name there."""


class Perturbed:
    """A risk's model with some layers moved.

    A layer's weight is replaced when a module that holds it starts, and put back when that module ends, so that one
    moved layer takes memory at a time. Layers whose weight is also read outside of the modules that hold it are found
    by trying each on one example, and are replaced as long as the whole model runs; of a sharded model, as long as the
    module runs that gathered the weight.
    """

    def __init__(self, risk: Risk, layers: Sequence[Layer]):
        self.risk, self.layers = risk, tuple(layers)
        self._owners: dict[str, list[Place]] = {}

    def find(self) -> None:
        """Find where each layer is replaced; the parts of a sharded model do so at the same time, before `moved`."""
        if self._owners:
            return
        owners = {x.name: _owners(self.risk.model, x) for x in self.layers}
        some = self.risk.place(next(iter(self.risk.batches)).select(slice(1)))
        self.risk.spend(2 * FORWARD * len(self.layers), len(some))
        for layer in self.layers:
            widely = units(self.risk.model, layer)
            with torch.no_grad():
                expected = (self._doubled(layer, widely, some) if self.risk.sharded else
                            self.risk.outputs({layer.name: 2 * self.risk.weights[layer.name]}, some))
                found = self._doubled(layer, owners[layer.name], some)
            if not torch.allclose(found, expected, rtol=1e-3, atol=1e-6 * expected.abs().max().item(), equal_nan=True):
                owners[layer.name] = widely
        self._owners = owners

    def _doubled(self, layer: Layer, places: Sequence[Place], batch: Batch) -> Tensor:
        """The outputs with twice the layer's weight at these places."""
        kinds = set()

        def twice(weight: Tensor) -> Tensor:
            kinds.add(weight.dtype)
            return 2 * weight
        with moving(self.risk, {layer.name: twice}, {layer.name: places}):
            outputs = self.risk.outputs({}, batch)
        if kinds - {self.risk.weights[layer.name].dtype}:
            raise InputError(f"the weight of {layer.name!r} is {self.risk.weights[layer.name].dtype} and runs as "
                             f"{kinds.pop()}, which rounds away what noise adds; shard the model by fully_shard "
                             "without a param_dtype in its MixedPrecisionPolicy")
        return outputs

    def moved(self, moves: Mapping[str, Move]) -> contextlib.AbstractContextManager[None]:
        """Inside the block the model runs with these layers moved; afterwards, also after an error, as before."""
        self.find()
        return moving(self.risk, moves, self._owners)


@contextlib.contextmanager
def moving(risk: Risk, moves: Mapping[str, Move], places: Mapping[str, Sequence[Place]]) -> Iterator[None]:
    """Inside the block layers are moved at these places, each while the module of the place runs."""
    current = dict(moves)
    held: dict[tuple[nn.Module, str], tuple[nn.Parameter, int]] = {}

    def enter(name: str, holder: nn.Module, key: str) -> None:
        if name in current:
            original, depth = held.get((holder, key), (holder._parameters[key], 0))
            held[holder, key] = original, depth + 1
            if depth == 0:
                holder._parameters[key] = current[name](original.detach())

    def leave(name: str, holder: nn.Module, key: str) -> None:
        if name in current:
            original, depth = held.pop((holder, key))
            if depth > 1:
                held[holder, key] = original, depth - 1
            else:
                holder._parameters[key] = original

    hooks = []
    try:
        for name in current:
            for runs, *place in places[name]:  # within what gathers the weight before and lets it go afterwards
                hooks.append(runs.register_forward_pre_hook(lambda *_, n=name, p=place: enter(n, *p)))
                hooks.append(runs.register_forward_hook(lambda *_, n=name, p=place: leave(n, *p),
                                                        prepend=risk.sharded))
        yield
    finally:
        current.clear()
        for (holder, key), (original, _) in held.items():
            holder._parameters[key] = original
        for hook in hooks:
            hook.remove()


def units(model: nn.Module, layer: Layer) -> list[Place]:
    """As `_owners`, for as long as the weight is at hand: while the model runs, or the part of it that gathers it."""
    places = [(path, *path.rpartition(".")[::2]) for path in (layer.parameter, *layer.tied)]
    return [(unit(model, path), model.get_submodule(holder), key) for path, holder, key in places]


def _owners(model: nn.Module, layer: Layer) -> list[Place]:
    """For every place of the weight."""
    found = []
    for path in (layer.parameter, *layer.tied):
        holder_path, _, key = path.rpartition(".")
        holder = model.get_submodule(holder_path)
        above = model.get_submodule(holder_path.rpartition(".")[0])
        found.append((holder, holder, key))
        if isinstance(above, nn.MultiheadAttention):  # reads its projection's weight without calling it
            found.append((above, holder, key))
    return found
