"""Subjects x requests -> one table of readings; resumable."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from genmeasure.checkpoints.distances import adapter_distances, distances
from genmeasure.checkpoints.locate import locate
from genmeasure.checkpoints.names import renamed, table
from genmeasure.checkpoints.read import is_adapter, open_stored, read_adapter
from genmeasure.checkpoints.sharded import WHOLE
from genmeasure.engine import Engine, LocalEngine, float32_products, progress
from genmeasure.errors import InputError, LostRank
from genmeasure.estimate import Estimate, Estimates
from genmeasure.precision import FLOAT32
from genmeasure.predictions import has_input_norm
from genmeasure.registry import Member, bound, find, measure
from genmeasure.subject import Subject, SubjectFiles

COLUMNS = ("study", "subject", "measure", "kind", "layer", "sigma", "term", "value", "stderr", "n", "unit", "params",
           "seconds", "passes", "error")


@dataclass(frozen=True)
class Request:
    """A measure or bound with parameters; unknown names raise `InputError` with the nearest known one."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        find(self.name).parameters(self.parameters)

    def __hash__(self) -> int:
        return hash((self.name, json.dumps(dict(self.parameters), sort_keys=True, default=str)))

    @property
    def member(self) -> Member:
        return find(self.name)


def everything() -> tuple[Request, ...]:
    """Every measure, and every bound in each of its variants, with default parameters."""
    measures = tuple(Request(m.name) for m in measure)
    return measures + tuple(Request(b.name, {} if isinstance(b.kind, str) else {"variant": v})
                            for b in bound for v in ([None] if isinstance(b.kind, str) else b.kind))


def applicable(subject: Subject, requests: Sequence[Request]) -> tuple[Request, ...]:
    """Without members that need test data, classes or norms of inputs where there are none, and without those that
    cannot take a model that is sharded over ranks."""
    has = {"test": subject.test is not None, "classes": subject.loss.classification,
           "input-norm": has_input_norm(subject)}

    def needs(request: Request) -> tuple[str, ...]:
        found = request.member.needs
        return found[request.member.parameters(request.parameters)["variant"]] if isinstance(found, Mapping) else found

    def takes(request: Request) -> bool:
        return not subject.risk.sharded or request.member.takes_sharded(request.member.parameters(request.parameters))
    return tuple(r for r in requests if all(has[need] for need in needs(r)) and takes(r))


def read(subject: Subject, request: Request, study: str = "") -> pd.DataFrame:
    """The readings of one request on one subject, in the columns of readings.csv.

    `params` holds the parameters and, under `found`, what the member found out about the subject (a route, for one) and
    the dtype where it is not float32.
    A member that has no expression for the subject gives one row, of the term `not-defined`, and `found` says why.
    `passes` is what they cost by themselves, `seconds` what they took here, with what was measured before at hand.
    """
    taken = sorted(set(subject.labels) & {*COLUMNS, "variant"})
    if taken:
        raise InputError(f"a label named {taken[0]!r} came, which is a column of the readings; choose another name")
    with float32_products(subject.precision.products):
        return _read(subject, request, study)


def _read(subject: Subject, request: Request, study: str) -> pd.DataFrame:
    member, parameters = request.member, request.member.parameters(request.parameters)
    if subject.risk.sharded and not member.takes_sharded(parameters):
        able = [m.name + "".join(f" with {k}={v}" for k, v in m.sharded.items()) for m in (*measure, *bound)
                if m.sharded is not None]
        raise InputError(f"{request.name} came for {subject.name!r}, whose weights are sharded over ranks; such a "
                         f"model takes {', '.join(able)}; for the others {WHOLE}")
    subject.shared.new_reading()
    before, started = subject.risk.passes, time.perf_counter()
    undefined = member.defined and member.defined(subject)
    estimates = (Estimates({("",) * (len(member.index) - 1) + ("not-defined",): Estimate(1.0)},
                           **{"not defined": undefined}) if undefined else
                 member.function(subject, **request.parameters))
    if lost := [k for k, e in estimates.items() if math.isnan(e.value)]:
        raise InputError(f"{member.name} of {subject.name!r} is NaN at {lost[0]!r} and {len(lost) - 1} other places; "
                         "check the inputs, or measure with --dtype float64")
    checks = () if undefined else member.assumes
    violated = {check.__name__.replace("_", "-"): check(subject, parameters) for check in checks}
    seconds, passes = time.perf_counter() - started, subject.engine.total(subject.risk.passes - before)
    kind = member.kind_for(parameters)
    if kind == "certificate" and any(violated.values()):
        kind = "measure"
    found = dict(estimates.found) if isinstance(estimates, Estimates) else {}
    if subject.precision != FLOAT32:
        found["dtype"] = subject.precision.name
    if subject.notes:
        found["read"] = dict(subject.notes)
    found = {"found": found} if found else {}
    common = {"study": study, "subject": subject.name, "measure": member.name, "kind": kind,
              "params": json.dumps(parameters | found, sort_keys=True), "seconds": seconds, "passes": passes,
              "error": ""}
    rows = []
    for key, estimate in estimates.items():
        place = dict(zip(member.index, key if isinstance(key, tuple) else (key,), strict=True))
        rows.append({**common, **place, "value": estimate.value, "stderr": estimate.stderr, "n": estimate.n,
                     "unit": member.unit_for(place.get("term", ""))})
    rows += [{**common, "term": f"assumes:{name}", "value": float(sentence is None), "stderr": 0.0, "n": 1, "unit": ""}
             for name, sentence in violated.items()]
    return _frame([{**row, **subject.labels} for row in rows])


def _frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(list(rows))
    for column in COLUMNS:
        if column not in frame:
            frame[column] = float("nan") if column in ("sigma", "value", "stderr", "n") else ""
    texts = [c for c in COLUMNS if c not in ("sigma", "value", "stderr", "n", "seconds", "passes")]
    frame[texts] = frame[texts].astype(object).fillna("")
    return frame[[*COLUMNS, *(c for c in frame if c not in COLUMNS)]]


def attempt(subject: Subject, request: Request, study: str = "") -> pd.DataFrame:
    """`read`, or one failed reading where that raises."""
    try:
        return read(subject, request, study)
    except Exception as error:
        return failed(subject, request, error, study)


def failed(subject: Subject | SubjectFiles, request: Request, error: Exception, study: str) -> pd.DataFrame:
    """The reading of a request that did not work: one row with `error` set and no value."""
    sentence = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    return _frame([{"study": study, "subject": subject.name, "measure": request.name,
                    "params": json.dumps(dict(request.parameters), sort_keys=True, default=str),
                    "error": " ".join(sentence.split()) or type(error).__name__, **dict(subject.labels)}])


def key(subject: Subject, request: Request) -> str:
    """Names a part: changes with the subject's weights and data, the member, its parameters and its code."""
    parts = [subject.fingerprint, subject.name, json.dumps(dict(subject.labels), sort_keys=True, default=str),
             request.name, json.dumps(request.member.parameters(request.parameters), sort_keys=True, default=str),
             request.member.source_hash()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


def write_atomically(path: Path, text: str) -> None:
    """Write to a temporary name in the same folder, then rename: a file that exists is complete."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def to_csv(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, float_format="%.17g", lineterminator="\n")


def _read_part(path: Path) -> pd.DataFrame:
    """Numbers to the last bit, whatever the version of pandas; names as text even where they look like numbers."""
    frame = pd.read_csv(path, keep_default_na=False, dtype=dict.fromkeys(COLUMNS, object))
    for column in ("sigma", "value", "stderr", "n", "seconds", "passes"):
        frame[column] = [float(text) if text else math.nan for text in frame[column]]
    return frame


@dataclass(frozen=True)
class Task:
    """One subject with some of its requests, which share what the subject remembers.

    parts: the folder that holds finished readings. have: the parts that exist, for a task that runs where the folder
    may not be; what it measures is then written by who gets its outcomes. engine: what the subject is loaded with.
    """

    subject: Subject | SubjectFiles
    requests: tuple[Request, ...]
    study: str
    parts: Path
    alone: bool = False
    loaded: Subject | None = None
    only_applicable: bool = False
    engine: Engine = field(default_factory=LocalEngine)
    have: frozenset[str] | None = None

    def __len__(self) -> int:
        return len(self.requests) + 1

    @property
    def name(self) -> str:
        return self.subject.name

    def outcomes(self, start: int) -> Iterator[Outcome]:
        """Write the missing parts, from request number `start` on; what became of each, and facts about the subject.

        Raises `InputError` for a subject that cannot be loaded.
        """
        with torch.random.fork_rng(devices=[]):
            subject = self.loaded or self.load()
            requests = applicable(subject, self.requests) if self.only_applicable else self.requests
            requests = requests[start:]
            for request in progress(requests, subject.name) if self.alone else requests:
                yield self._carried_out(subject, request)
        yield Outcome(self.name, facts=self._facts(subject))

    def load(self) -> Subject:
        """The subject, read from its files where it is one by files."""
        with self.engine.together():
            return self.subject.load(self.engine) if isinstance(self.subject, SubjectFiles) else self.subject

    def _carried_out(self, subject: Subject, request: Request) -> Outcome:
        engine, path = subject.engine, self.parts / f"{key(subject, request)}.csv"
        text = ""
        if not (engine.once(path.exists) if self.have is None else path.name in self.have):
            try:
                with engine.together():
                    text = to_csv(read(subject, request, self.study))
                if self.have is None:
                    engine.once(lambda: write_atomically(path, text))
            except LostRank:
                raise
            except Exception as error:
                return Outcome(self.name, request, failure=failed(subject, request, error, self.study))
        return Outcome(self.name, request, part=path.name, text="" if self.have is None else text)

    def _facts(self, subject: Subject) -> dict[str, Any]:
        selected = {path for x in subject.layers for path in (x.parameter, *x.tied)}
        left_out = [n for n, p in subject.model.named_parameters() if p.ndim > 1 and n not in selected]
        facts = {"fingerprint": subject.fingerprint, "layers": [x.name for x in subject.layers],
                 "weights left out": left_out,
                 "head": next(x.name for x in subject.layers if x.head), "head center": subject.head_center,
                 "outputs": subject.classes, "training examples": subject.train.size,
                 "test examples": subject.test.size if subject.test else 0}
        if isinstance(self.subject, SubjectFiles):
            facts |= {"model": self.subject.model, "start": self.subject.start, "end": self.subject.end,
                      "train": self.subject.train, "test": self.subject.test}
        return facts


@dataclass(frozen=True)
class Outcome:
    """What came of a request (the name of its part, with its text where that is still to be written, or a failed
    reading) or of a subject (facts, or bad input)."""

    subject: str
    request: Request | None = None
    part: str = ""
    text: str = ""
    failure: pd.DataFrame | None = None
    facts: Mapping[str, Any] | None = None
    bad: InputError | None = None


def _carry_out(task: Task, start: int) -> Iterator[Outcome]:
    try:
        yield from task.outcomes(start)
    except InputError as error:
        yield Outcome(task.name, bad=error)


def tasks_of(subjects: Sequence[Subject | SubjectFiles], requests: Sequence[Request], study: str, parts: Path,
             engine: Engine, only_applicable: bool) -> list[Task]:
    """A task for every subject; several that share its requests where a cluster has more processes than subjects."""
    pieces = min(len(requests), math.ceil(engine.processes / len(subjects))) if engine.remote else 1
    have = frozenset(p.name for p in parts.glob("*.csv")) if engine.remote else None
    return [Task(s, tuple(requests[i::pieces]), study, parts, only_applicable=only_applicable, engine=engine.within,
                 have=have) for s in subjects for i in range(pieces)]


def run(subjects: Sequence[Subject | SubjectFiles], requests: Sequence[Request], out: str | Path, *, study: str = "",
        engine: Engine | None = None, provenance: Mapping[str, Any] | None = None,
        only_applicable: bool = False) -> pd.DataFrame:
    """Carry out every request on every subject and collect the readings in `out`.

    only_applicable: leave out members that need test data or classes where a subject has none.

    Every request's readings are a file in `out/parts`; those that exist are not computed again, so the same call goes
    on where an interrupted one stopped. Writes `readings.csv` and `provenance.json`. A request that fails is a reading
    with `error` set, tried again next time; bad input (a subject that cannot be loaded) raises `InputError` after all
    others are done, and the parts stay.
    """
    requests = list(dict.fromkeys(requests))
    if not subjects or not requests:
        raise InputError(f"{len(subjects)} subjects and {len(requests)} requests came; a study needs at least one of "
                         "each")
    names = [s.name for s in subjects]
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise InputError(f"two subjects are named {twice!r}; the names of a study's subjects must differ")
    out, engine, started = Path(out), engine or LocalEngine(), time.perf_counter()
    tasks = tasks_of(subjects, requests, study, out / "parts", engine, only_applicable)
    if len(tasks) == 1 and not engine.remote:  # nothing is written for bad input
        tasks = [replace(tasks[0], alone=True, loaded=tasks[0].load())]
    engine.once(lambda: (out / "parts").mkdir(parents=True, exist_ok=True))
    found: dict[str, list[Outcome]] = {name: [] for name in names}
    for outcome in engine.map(_carry_out, tasks, "audit"):
        if outcome.text:
            write_atomically(out / "parts" / outcome.part, outcome.text)
            outcome = replace(outcome, text="")
        found[outcome.subject].append(outcome)
    bad = [f"{name}: {o.bad}" for name in names for o in found[name] if o.bad is not None]
    if bad:
        raise InputError(bad[0] + (f" (and {len(bad) - 1} more subjects could not be read)" if len(bad) > 1 else ""))

    def collect() -> pd.DataFrame:
        outcomes = [o for name in names for o in found[name]]
        frames = []
        for name in names:
            mine = sorted((o for o in found[name] if o.request), key=lambda o: requests.index(o.request))
            frames += [_read_part(out / "parts" / o.part) for o in mine if o.part]
            frames += [o.failure for o in mine if o.failure is not None]
        readings = pd.concat([f for f in frames if len(f)], ignore_index=True)
        readings["study"] = study
        write_atomically(out / "readings.csv", to_csv(readings))
        facts = {**settings(), **(provenance or {}), "study": study, "requests": [
            {"name": r.name, **r.member.parameters(r.parameters)} for r in requests],
            "subjects": {o.subject: o.facts for o in outcomes if o.facts is not None},
            "seconds": time.perf_counter() - started}
        write_atomically(out / "provenance.json", json.dumps(facts, indent=1, default=str) + "\n")
        return readings
    return engine.once(collect)


def run_weights(name: str, start: str, end: str, out: str | Path, *, rename: Sequence[str] = (), study: str = "",
                provenance: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """The distances of two checkpoints, or of an adapter's factors, as the readings of one subject in `out`.

    Tensors are read one after the other; neither checkpoint is ever in memory. Raises `InputError` for bad input.
    """
    began, out, renames = time.perf_counter(), Path(out), table(rename)
    stored, place = open_stored(locate(start)), locate(end)
    stored = replace(stored, entries=renamed(stored.entries, renames))
    if is_adapter(place):
        ended = read_adapter(place)
        estimates, notes = adapter_distances(stored, ended)
    else:
        ended = open_stored(place)
        estimates, notes = distances(stored, replace(ended, entries=renamed(ended.entries, renames)))
    found = {k: v for k, v in {"start": stored.notes, "end": ended.notes, "names": tuple(notes)}.items() if v}
    seconds = time.perf_counter() - began
    readings = _frame([{
        "study": study, "subject": name, "measure": "distance", "kind": "measure", "layer": layer, "term": term,
        "value": e.value, "stderr": e.stderr, "n": e.n, "unit": find("distance").unit_for(term),
        "params": json.dumps({"found": {"read": found}} if found else {}), "seconds": seconds, "passes": 0.0,
        "error": ""} for (layer, term), e in estimates.items()])
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "readings.csv", to_csv(readings))
    facts = {**settings(), **(provenance or {}), "study": study, "requests": [{"name": "distance"}],
             "subjects": {name: {"start": start, "end": end, "outputs": None}}, "seconds": seconds}
    write_atomically(out / "provenance.json", json.dumps(facts, indent=1, default=str) + "\n")
    return readings


def settings() -> dict[str, Any]:
    """Versions and machine."""
    packages = ("genmeasure", "torch", "numpy", "scipy", "pandas", "matplotlib", "safetensors")
    return {"versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
            "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count(),
                        "cuda": torch.version.cuda or "none"}}
