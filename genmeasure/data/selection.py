"""Which of a data set's examples are taken: all, some drawn by a seed, a held-out part, or an episode of few shots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genmeasure.errors import InputError

HOLDOUT = ("train", "validation")
EPISODE = ("support", "query")


@dataclass(frozen=True)
class Selection:
    """Taken from the arguments of a data specification.

    rows: this many examples, without replacement. holdout: `#validation` is this fraction of the examples and `#train`
    the rest. ways, shots, queries, episode: an episode of few shots is `ways` classes, with `shots` examples of each as
    `#support` and `queries` others as `#query`, the classes numbered from 0; `episode` counts the draws. of: the stored
    split that this is applied to. seed: of every draw.
    """

    rows: int | None = None
    holdout: float | None = None
    ways: int | None = None
    shots: int = 5
    queries: int = 15
    episode: int = 0
    of: str = ""
    seed: int = 0

    @classmethod
    def split(cls, arguments: Mapping[str, Any], spec: str) -> tuple[Selection, dict[str, Any]]:
        """The selection in `arguments`, and the other arguments; raises `InputError` for what cannot be drawn."""
        own = {k: v for k, v in arguments.items() if k in cls.__dataclass_fields__}
        for name, value in own.items():
            wanted = "a fraction between 0 and 1" if name == "holdout" else "text" if name == "of" else "a whole number"
            right = isinstance(value, float) and 0 < value < 1 if name == "holdout" else \
                isinstance(value, str) if name == "of" else type(value) is int and value >= (name not in
                                                                                            ("seed", "episode"))
            if not right:
                raise InputError(f"{name}={value!r} came in {spec!r}; give {wanted}")
        if "holdout" in own and "ways" in own:
            raise InputError(f"holdout and ways came in {spec!r}; choose one of them")
        return cls(**own), {k: v for k, v in arguments.items() if k not in own}

    @property
    def parts(self) -> tuple[str, ...]:
        """The splits that it makes; none where it only draws."""
        return HOLDOUT if self.holdout is not None else EPISODE if self.ways is not None else ()

    def stored_part(self, part: str, spec: str) -> str:
        """The stored split that is read for `#part`."""
        if self.parts and part not in self.parts:
            raise InputError(f"the split {part!r} came in {spec!r}; choose one of "
                             f"{', '.join('#' + p for p in self.parts)}, and name a stored split as ?of=SPLIT")
        return self.of if self.parts else part

    def chosen(self, labels: Tensor, part: str, spec: str) -> tuple[Tensor, Tensor, list[str]]:
        """Positions in ascending order, their labels, and a sentence for each draw; labels: [n, ...]."""
        generator = torch.Generator().manual_seed(self.seed)
        positions, notes = torch.arange(len(labels)), []
        if self.holdout is not None:
            order, held = torch.randperm(len(labels), generator=generator), round(self.holdout * len(labels))
            positions = (order[:held] if part == "validation" else order[held:]).sort().values
            notes.append(f"{part} of a split with {self.holdout:g} held out, seed {self.seed}")
        if self.ways is not None:
            positions, labels = self._episode(labels, part, spec)
            notes.append(f"{part} of episode {self.episode}: {self.ways} ways, {self.shots} shots, seed {self.seed}")
        else:
            labels = labels[positions]
        if self.rows is not None and self.rows < len(positions):
            some = torch.randperm(len(positions), generator=generator)[:self.rows].sort().values
            notes.append(f"{self.rows} of {len(positions)} examples drawn, seed {self.seed}")
            positions, labels = positions[some], labels[some]
        return positions, labels, notes

    def _episode(self, labels: Tensor, part: str, spec: str) -> tuple[Tensor, Tensor]:
        if labels.ndim != 1 or labels.is_floating_point():
            raise InputError(f"ways={self.ways} came in {spec!r}, whose examples have no single class; episodes need "
                             "one class per example")
        need = self.shots + self.queries
        counts = labels.bincount()
        enough = (counts >= need).nonzero().squeeze(1)
        if len(enough) < self.ways:
            raise InputError(f"{len(enough)} classes of {spec!r} have at least {need} examples; {self.ways} ways of "
                             f"{self.shots} shots and {self.queries} queries need as many classes: ask for less")
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.episode)
        classes = enough[torch.randperm(len(enough), generator=generator)[:self.ways]]
        positions, numbers = [], []
        for number, wanted in enumerate(classes):
            rows = (labels == wanted).nonzero().squeeze(1)
            drawn = rows[torch.randperm(len(rows), generator=generator)[:need]]
            positions.append(drawn[:self.shots] if part == "support" else drawn[self.shots:])
            numbers.append(torch.full_like(positions[-1], number))
        return torch.cat(positions), torch.cat(numbers)
