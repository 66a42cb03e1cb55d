"""Everything that changes while a run lasts, as tensors and plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from genmeasure.training.algorithm import Algorithm
from genmeasure.training.history import Epoch
from genmeasure.training.precision import Precision
from genmeasure.training.randomness import global_state, set_global_state
from genmeasure.training.ranks import Ranks


class State:
    """Where a run is.

    number: of the present epoch, from 1. step: steps done in it. steps: done in all. total, counted: sum of the losses
    of its examples so far, and how many they are. seconds: it has taken so far. order_before: state of the generator
    `order` when it began. history: of the epochs before. order: of examples and the loss's draws, on the CPU.
    noise: of the probe's draws, on the model's device. kept: what the model held in the chosen epoch, where an adapter
    has factors that its weights alone do not tell.
    """

    def __init__(self, model: nn.Module, algorithm: Algorithm, optimizer: torch.optim.Optimizer, precision: Precision,
                 seed: int, ranks: Ranks | None = None):
        self.ranks = ranks or Ranks()
        self.model, self.algorithm, self.optimizer, self.precision = model, algorithm, optimizer, precision
        self.device = optimizer.param_groups[0]["params"][0].device
        self.order = torch.Generator().manual_seed(seed)
        self.noise = torch.Generator(self.device).manual_seed(seed)
        self.history: list[Epoch] = []
        self.kept: dict[str, Tensor] = {}
        self.steps = 0
        self._pieces: dict[str, dict[str, Tensor]] = {}
        self.begin(1)

    def begin(self, number: int) -> None:
        """Nothing of this epoch is done yet."""
        self.number, self.step, self.counted, self.seconds = number, 0, 0, 0.0
        wide = torch.float32 if self.device.type == "mps" else torch.float64
        self.total = torch.zeros((), dtype=wide, device=self.device)
        self.order_before = self.order.get_state()

    def loss(self) -> float:
        """The mean over the examples of the present epoch so far; nan before the first."""
        return self.total.item() / self.counted if self.counted else float("nan")

    def tensors(self) -> dict[str, Tensor]:
        """The same on all ranks, all of which must call this."""
        groups = {
            "model": self.model.state_dict(),
            "optimizer": {f"{number}.{name}": value for number, entry in self.optimizer.state_dict()["state"].items()
                          for name, value in entry.items() if isinstance(value, Tensor)},
            "generator": {"order": self.order.get_state(), "order_before": self.order_before,
                          "noise": self.noise.get_state(),
                          **self.ranks.gathered(global_state(self.device), self.device)},
            "epoch": {"total": self.total}, "kept": self.kept,
            **{f"pieces.{place}": piece.state() for place, piece in self.algorithm.pieces().items()}}
        return {f"{group}/{name}": tensor for group, some in groups.items() for name, tensor in some.items()}

    def facts(self) -> dict[str, Any]:
        return {"number": self.number, "step": self.step, "steps": self.steps, "counted": self.counted,
                "seconds": self.seconds, "history": [epoch.record() for epoch in self.history],
                "scaler": self.precision.state(),
                "moved": [[place, name] for place, piece in self.algorithm.pieces().items()
                          for name, tensor in piece.state().items() if tensor.device.type != "cpu"],
                "optimizer": {str(number): {name: value for name, value in entry.items()
                                            if not isinstance(value, Tensor)}
                              for number, entry in self.optimizer.state_dict()["state"].items()}}

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Take up what `tensors` and `facts` returned."""
        groups: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            group, _, name = key.partition("/")
            groups.setdefault(group, {})[name] = tensor
        self.model.load_state_dict(groups["model"])
        self._load_optimizer(groups.get("optimizer", {}), facts["optimizer"])
        self.precision.load(facts["scaler"])
        self.number, self.step, self.steps = facts["number"], facts["step"], facts["steps"]
        self.counted, self.seconds = facts["counted"], facts["seconds"]
        self.total = groups["epoch"]["total"].to(self.device)
        self.kept = groups.get("kept", {})
        self.history = [Epoch.of(record) for record in facts["history"]]
        self._generators = groups["generator"]
        for place in self.algorithm.pieces():
            self._pieces[place] = {name: tensor.to(self.device) if [place, name] in facts["moved"] else tensor
                                   for name, tensor in groups.get(f"pieces.{place}", {}).items()}
        self.load_pieces()
        self.load_generators()

    def load_pieces(self) -> None:
        for place, piece in self.algorithm.pieces().items():
            if self._pieces[place]:
                piece.load(self._pieces[place])

    def load_generators(self) -> None:
        self.order.set_state(self._generators["order"])
        self.order_before = self._generators["order_before"]
        self.noise.set_state(self._generators["noise"])
        names = global_state(self.device)
        set_global_state(self.ranks.own(self._generators, names), self.device)

    def _load_optimizer(self, tensors: Mapping[str, Tensor], values: Mapping[str, Mapping[str, Any]]) -> None:
        state: dict[int, dict[str, Any]] = {int(number): dict(entry) for number, entry in values.items()}
        for key, tensor in tensors.items():
            number, _, name = key.partition(".")
            state[int(number)][name] = tensor
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
