"""A fine-tuning algorithm: a few pieces that one loop runs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from genmeasure.registry import algorithm as algorithms
from genmeasure.training.context import Context
from genmeasure.training.losses.cross_entropy import CrossEntropy
from genmeasure.training.pieces import Constraint, Penalty, Probe, Recipe, Selection, TrainLoss
from genmeasure.training.probes.here import Here


@dataclass(frozen=True)
class Algorithm:
    """Fine-tuning methods differ in at most these places.

    probe: where the gradient is taken. loss: what is minimised. penalty: what is added. constraint: what is enforced
    after the step. selection: which epoch is returned and when training ends; None leaves it to the settings.
    """

    probe: Probe | Recipe[Probe] = field(default_factory=Here)
    loss: TrainLoss | Recipe[TrainLoss] = field(default_factory=CrossEntropy)
    penalty: Penalty | Recipe[Penalty] | None = None
    constraint: Constraint | Recipe[Constraint] | None = None
    selection: Selection | None = None

    def prepare(self, context: Context) -> Algorithm:
        """The same algorithm with every piece ready for one run."""
        pieces = {name: getattr(self, name) for name in ("probe", "loss", "penalty", "constraint", "selection")}
        return replace(self, **{name: piece.prepare(context) for name, piece in pieces.items() if piece is not None})


def get_algorithm(algorithm: str | Algorithm, **parameters: Any) -> Algorithm:
    """An algorithm by its registered name, with `parameters` over its defaults; an `Algorithm` is passed through.

    Raises `InputError` for an unknown name or parameter.
    """
    if isinstance(algorithm, Algorithm):
        return algorithm
    member = algorithms[algorithm]
    return member.function(**member.parameters(parameters))
