"""A fine-tuned checkpoint that a study needs, described so that it can be made, audited, or only planned."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from genmeasure.checkpoints.build import build
from genmeasure.checkpoints.locate import locate
from genmeasure.checkpoints.match import fingerprint, match, task_modules
from genmeasure.checkpoints.pair import read_start
from genmeasure.checkpoints.read import read
from genmeasure.checkpoints.write import write
from genmeasure.data.readers import load_for
from genmeasure.engine import Engine, LocalEngine
from genmeasure.errors import InputError
from genmeasure.registry import algorithm
from genmeasure.subject import SubjectFiles, source_of
from genmeasure.training.algorithm import get_algorithm
from genmeasure.training.loop import fine_tune
from genmeasure.training.settings import Settings


@dataclass(frozen=True)
class FineTuned:
    """What makes one checkpoint, and where it goes.

    name: of the subject; differs within a study. end: the `.safetensors` to write. model, start, train, validation,
    test: specifications as the command line takes them (`?noise=` in `train` makes its labels wrong). drawn: the start
    is nobody's: the file `start` gets the weights that the model draws with the settings' seed. method,
    parameters: a registered algorithm. labels: pairs for the readings' label columns. head: path of the head, if it
    cannot be found. head_center: see `SubjectFiles`. examples, flops: training examples, and operations of a forward
    pass of one, for a plan on a machine that lacks the data or the model's library.
    """

    name: str
    end: Path
    model: str
    start: str
    train: str
    validation: str | None = None
    test: str | None = None
    method: str = "plain"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    labels: tuple[tuple[str, Any], ...] = ()
    head: str | None = None
    head_center: str = "zero"
    drawn: bool = False
    examples: int | None = None
    flops: float | None = None

    def files(self, device: str = "auto") -> SubjectFiles:
        """The checkpoint on disk as a subject to audit."""
        return SubjectFiles(self.name, self.model, self.start, str(self.end), self.train, self.test, device=device,
                            labels=self.labels, head=self.head, head_center=self.head_center, seed=self.settings.seed)

    @property
    def passes(self) -> float:
        """Forward-backward passes over the training data, if no epoch is left out."""
        made = get_algorithm(self.method, **self.parameters)
        return self.settings.epochs * (made.probe.passes + getattr(made.loss, "passes", 0))  # a loss yet to be chosen

    def __call__(self) -> str:
        """Fine-tune and write the checkpoint, unless one made in the same way is there; its name.

        Raises `InputError` for what is missing or does not fit.
        """
        model = build(self.model, seed=self.settings.seed)
        if self.drawn:
            write(self.start, model.state_dict(), {"model": self.model, "seed": str(self.settings.seed)})
        started, _ = read_start(self.start, model.state_dict())
        match(model, started, head=[*filter(None, [self.head]), *task_modules(model)])
        train, validation = (load_for(self.model, spec) if spec else None for spec in (self.train, self.validation))
        recipe = json.dumps({
            "start": fingerprint(model.state_dict()), "structure": repr(model), "data": train.fingerprint,
            "validation": validation.fingerprint if validation else "", "method": self.method,
            "parameters": dict(self.parameters), "settings": asdict(self.settings), "head": self.head,
            "code": [algorithm[self.method].source_hash(), *source_of(model)]}, sort_keys=True)
        if recipe_of(self.end) == recipe:
            return self.name
        result = fine_tune(model, get_algorithm(self.method, **self.parameters), train, validation,
                           settings=self.settings, head=self.head, confusion=train.confusion)
        self.end.parent.mkdir(parents=True, exist_ok=True)
        write(self.end, result.model.state_dict(), {
            "recipe": recipe, "method": self.method, "model": self.model, "train": self.train,
            "seed": str(self.settings.seed), "chosen_epoch": str(result.chosen),
            "history": json.dumps([_without_seconds(epoch.record()) for epoch in result.history]),
            "report": json.dumps({place: piece.report() for place, piece in result.algorithm.pieces().items()})})
        return self.name


def _without_seconds(record: dict[str, Any]) -> dict[str, Any]:
    """So that the same recipe makes the same contents."""
    return {name: value for name, value in record.items() if name != "seconds"}


def recipe_of(path: Path) -> str | None:
    """What a checkpoint says of how it was made; None for one that is absent, broken off or says nothing."""
    try:
        return read(path).metadata.get("recipe")
    except InputError:
        return None


def _carry_out(wanted: FineTuned, _: int) -> Iterator[str]:
    yield wanted()


def make(wanted: Sequence[FineTuned], *, device: str = "auto", engine: Engine | None = None) -> list[SubjectFiles]:
    """Make the checkpoints that are missing; the subjects to audit."""
    for _ in (engine or LocalEngine()).map(_carry_out, wanted, "fine-tune"):
        pass
    return [one.files(device) for one in wanted]


def lacking(wanted: Sequence[FineTuned]) -> list[str]:
    """What this machine lacks to make them, a sentence each: models that cannot be built, starts and data sets that are
    not here."""
    found = []
    for model in dict.fromkeys(one.model for one in wanted):
        found += _fails(f"model {model}", lambda model=model: build(model))
    made = {str(one.end) for one in wanted} | {one.start for one in wanted if one.drawn}
    for start in dict.fromkeys(one.start for one in wanted if one.start not in made):
        found += _fails(f"start {start}", lambda start=start: _there(start))
    for model, data in dict.fromkeys((one.model, spec) for one in wanted
                                     for spec in (one.train, one.validation, one.test) if spec):
        found += _fails(f"data {data}", lambda model=model, data=data: load_for(model, data))
    return found


def _there(start: str) -> None:
    if not locate(start).exists():
        raise InputError(f"there is no {start}; download it, or give its path")


def _fails(what: str, attempt: Any) -> list[str]:
    try:
        attempt()
    except InputError as error:
        return [f"{what}: {' '.join(str(error).split())}"]
    return []
