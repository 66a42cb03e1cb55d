"""Weights moved while they are used: a moved layer exists only while its module runs, and no weight is written to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from genmeasure.layers import Layer
from genmeasure.risk import FORWARD, Risk

Move = Callable[[Tensor], Tensor]
"""A layer's weight to the weight that takes its place, of the same shape and dtype."""


class Perturbed:
    """A risk's model with some layers moved.

    A layer's weight is replaced when a module that holds it starts, and put back when that module ends, so that one
    moved layer takes memory at a time. Layers whose weight is also read outside of the modules that hold it are found
    by trying each on one example, and are replaced as long as the whole model runs.
    """

    def __init__(self, risk: Risk, layers: Sequence[Layer]):
        self.risk, self.layers = risk, tuple(layers)
        self._owners = {x.name: _owners(risk.model, x) for x in self.layers}
        some = risk.place(next(iter(risk.batches)).select(slice(1)))
        risk.spend(2 * FORWARD * len(self.layers), len(some))
        for layer in self.layers:
            moved = {layer.name: 2 * risk.weights[layer.name]}
            with torch.no_grad():
                expected = risk.outputs(moved, some)
                with self.moved({layer.name: lambda w: 2 * w}):
                    found = risk.outputs({}, some)
            if not torch.allclose(found, expected, rtol=1e-3, atol=1e-6 * expected.abs().max().item(), equal_nan=True):
                self._owners[layer.name] = [(risk.model, *place[1:]) for place in self._owners[layer.name]]

    @contextlib.contextmanager
    def moved(self, moves: Mapping[str, Move]) -> Iterator[None]:
        """Inside the block the model runs with these layers moved; afterwards, also after an error, as before."""
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
                original, depth = held[holder, key]
                held[holder, key] = original, depth - 1
                if depth == 1:
                    holder._parameters[key] = original

        hooks = []
        try:
            for name in current:
                for runs, *place in self._owners[name]:
                    hooks.append(runs.register_forward_pre_hook(lambda *_, n=name, p=place: enter(n, *p)))
                    hooks.append(runs.register_forward_hook(lambda *_, n=name, p=place: leave(n, *p)))
            yield
        finally:
            current.clear()
            for (holder, key), (original, _) in held.items():
                holder._parameters[key] = original
            for hook in hooks:
                hook.remove()


def _owners(model: nn.Module, layer: Layer) -> list[tuple[nn.Module, nn.Module, str]]:
    """(the module that runs, the module that holds the weight, its name there) for every place of the weight."""
    found = []
    for path in (layer.parameter, *layer.tied):
        holder_path, _, key = path.rpartition(".")
        holder = model.get_submodule(holder_path)
        above = model.get_submodule(holder_path.rpartition(".")[0])
        found.append((holder, holder, key))
        if isinstance(above, nn.MultiheadAttention):  # reads its projection's weight without calling it
            found.append((above, holder, key))
    return found
