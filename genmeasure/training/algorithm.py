"""A fine-tuning algorithm: a few pieces that one loop runs."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from genmeasure.errors import InputError
from genmeasure.registry import algorithm as algorithms
from genmeasure.training.context import Context
from genmeasure.training.losses.cross_entropy import CrossEntropy
from genmeasure.training.pieces import (
    Adapter,
    Average,
    Constraint,
    Penalty,
    Piece,
    Probe,
    Recipe,
    Selection,
    TrainLoss,
)
from genmeasure.training.probes.here import Here


@dataclass(frozen=True)
class Algorithm:
    """Fine-tuning methods differ in at most these places.

    probe: where the gradient is taken. loss: what is minimised. penalty: what is added. constraint: what is enforced
    after the step. average: of the weights along the way. adapter: factors trained in place of the weights.
    selection: which epoch is returned and when training ends; None leaves it to the settings.
    Raises `InputError` for an adapter together with a penalty or a constraint, which know the weights by their names.
    """

    probe: Probe | Recipe[Probe] = field(default_factory=Here)
    loss: TrainLoss | Recipe[TrainLoss] = field(default_factory=CrossEntropy)
    penalty: Penalty | Recipe[Penalty] | None = None
    constraint: Constraint | Recipe[Constraint] | None = None
    average: Average | Recipe[Average] | None = None
    adapter: Adapter | Recipe[Adapter] | None = None
    selection: Selection | None = None

    def __post_init__(self):
        if self.adapter is not None and (self.penalty is not None or self.constraint is not None):
            raise InputError("an adapter came together with a penalty or a constraint on the weights that it replaces; "
                             "use one of them")

    def pieces(self) -> dict[str, Piece]:
        """By the name of their place, those that are there."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: piece for name, piece in found.items() if piece is not None}

    def prepare(self, context: Context) -> Algorithm:
        """The same algorithm with every piece ready for one run."""
        return replace(self, **{name: piece.prepare(context) for name, piece in self.pieces().items()})


def get_algorithm(algorithm: str | Algorithm, **parameters: Any) -> Algorithm:
    """An algorithm by its registered name, with `parameters` over its defaults; an `Algorithm` is passed through.

    Raises `InputError` for an unknown name or parameter.
    """
    if isinstance(algorithm, Algorithm):
        return algorithm
    member = algorithms[algorithm]
    return member.function(**member.parameters(parameters))
