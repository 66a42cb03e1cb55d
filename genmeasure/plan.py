"""What a study will cost, before it is carried out: passes, memory and hours, from pilots on a few examples."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from genmeasure.checkpoints.build import build
from genmeasure.data.batches import Batches
from genmeasure.data.readers import load_for
from genmeasure.errors import InputError
from genmeasure.fine_tuned import FineTuned
from genmeasure.layers import forward
from genmeasure.matrix_product import linear
from genmeasure.risk import GRADIENT
from genmeasure.shared import Shared
from genmeasure.study import Request, applicable, read
from genmeasure.subject import Subject, SubjectFiles

PILOTS = (64, 256)
"""Examples of the two pilots; a data set of no more examples than the second takes one pilot, on all of it."""
SAMPLE_EVERY = 0.005
"""Seconds between two looks at this process's memory."""


@dataclass(frozen=True)
class Machine:
    """processes: that work side by side. flops: operations per second that each sustains; None for what this one does
    here."""

    processes: int
    flops: float | None = None

    @classmethod
    def parse(cls, text: str) -> Machine:
        """`N` or `NxFLOPS`, as in `64x4e14`; raises `InputError`."""
        count, _, flops = text.partition("x")
        with contextlib.suppress(ValueError):
            if int(count) > 0 and (not flops or float(flops) > 0):
                return cls(int(count), float(flops) if flops else None)
        raise InputError(f"the machine {text!r} came; give a number of processes, or NxFLOPS with the operations that "
                         "each sustains in a second, as in 64x4e14")


@dataclass(frozen=True)
class Cost:
    """Of one request on one subject, at least and at most.

    work: forward-equivalents of single examples. seconds: here. memory: peak in bytes, weights included.
    """

    request: Request
    work: tuple[float, float]
    seconds: tuple[float, float]
    memory: float


@dataclass(frozen=True)
class Pilot:
    """Costs of a subject's requests, extrapolated to all its examples. flops: of one example's forward pass."""

    subject: str
    subjects: int
    examples: int
    flops: float
    costs: tuple[Cost, ...]
    failures: tuple[str, ...]

    def hours(self, machine: Machine) -> tuple[float, float]:
        """At least and at most, of all its subjects on all the machine's processes, without what passes between them.
        """
        seconds = [sum(c.seconds[i] for c in self.costs) for i in (0, 1)]
        if machine.flops is not None:
            seconds = [sum(c.work[i] for c in self.costs) * self.flops / machine.flops for i in (0, 1)]
        return tuple(self.subjects * s / machine.processes / 3600 for s in seconds)


PROPORTION = 1e-6
"""Two pilots whose costs per example differ by less than this are of something that goes through the data."""


def extrapolated(small: tuple[int, float], large: tuple[int, float], examples: int) -> tuple[float, float]:
    """A cost at `examples`, at least and at most, from those of two pilots (examples, work).

    What goes through the data costs the same for every example. What is drawn until it is precise takes at least the
    draws of the larger pilot and a look at every example, and at most what grows as it grew between the pilots, since a
    small data set is soon taken whole.
    """
    (n, a), (m, b) = small, large
    each = b / m
    if m == n or abs(a / n - each) <= PROPORTION * each:
        return each * examples, each * examples
    slope = min(max(0.0, (b - a) / (m - n)), each)
    found = [b + s * (examples - m) for s in (min(1.0, each), slope)]
    return min(found), max(found)


@contextlib.contextmanager
def peak(device: torch.device) -> Iterator[list[float]]:
    """A list that holds the peak of memory in bytes when the block is left: of a GPU, or of this process."""
    found: list[float] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found.append(torch.cuda.max_memory_allocated(device))
        return
    process, ended, most = psutil.Process(), threading.Event(), [0]

    def look() -> None:
        while True:
            most[0] = max(most[0], process.memory_info().rss)
            if ended.wait(SAMPLE_EVERY):
                return
    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield found
    finally:
        ended.set()
        looking.join()
        found.append(most[0])


def first_examples(data: Batches, examples: int) -> Batches:
    """The first ones, in batches as they come."""
    if data.size <= examples:
        return data
    return Batches(data.gather(torch.arange(examples)), data.name)


def forward_flops(subject: Subject) -> float:
    """Operations of one example's forward pass."""
    batch = subject.risk.place(next(iter(subject.train)).select(slice(1)))
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        subject.risk.outputs({}, batch)
    return counter.get_total_flops()


def piloted(subject: Subject, request: Request, examples: int) -> Cost:
    """What a request takes on the first examples."""
    few = replace(subject, train=first_examples(subject.train, examples), shared=Shared(),
                  test=subject.test and first_examples(subject.test, examples))
    began = time.perf_counter()
    with peak(subject.risk.device) as memory:
        readings = read(few, request)
    seconds = time.perf_counter() - began
    work = readings["passes"].iloc[0] * few.train.size
    return Cost(request, (work, work), (seconds, seconds), memory[0])


def pilot(subject: Subject, requests: Sequence[Request], subjects: int = 1, sizes: tuple[int, int] = PILOTS) -> Pilot:
    """The costs of requests on a subject, each measured by itself on some of its examples."""
    costs, failures = [], []
    total = subject.train.size
    for request in requests:
        try:
            few, more = (piloted(subject, request, size) for size in sizes)
        except Exception as error:  # the run would have a failed reading here
            failures.append(f"{request.name}: {error}")
            continue
        n, m = (min(size, total) for size in sizes)

        work = extrapolated((n, few.work[0]), (m, more.work[0]), total)
        growth = [w / more.work[0] if more.work[0] else 1.0 for w in work]
        costs.append(Cost(request, work, tuple(g * more.seconds[0] for g in growth), max(few.memory, more.memory)))
    return Pilot(subject.name, subjects, total, forward_flops(subject), tuple(costs), tuple(failures))


def pilots(subjects: Sequence[Subject | SubjectFiles], requests: Sequence[Request], *,
           only_applicable: bool = False) -> list[Pilot]:
    """One for every kind of subject: those of the same model and data stand for each other."""
    kinds: dict[object, list[Subject | SubjectFiles]] = {}
    for subject in subjects:
        kind = ((subject.model, subject.train, subject.test, subject.batch_size, subject.dtype, subject.loss)
                if isinstance(subject, SubjectFiles) else id(subject))
        kinds.setdefault(kind, []).append(subject)
    found = []
    for alike in kinds.values():
        one = alike[0].load() if isinstance(alike[0], SubjectFiles) else alike[0]
        found.append(pilot(one, applicable(one, requests) if only_applicable else requests, len(alike)))
    return found


def table(found: Sequence[Pilot], machine: Machine) -> str:
    """As it is printed: a line for every request of every kind of subject, and the totals."""
    lines = []
    for p in found:
        lines.append(f"{p.subject} and {p.subjects - 1} like it: {p.examples:,} examples, {p.flops:.3g} operations in "
                     "a forward pass of one")
        lines.append(f"  {'request':34}{'passes':>16}{'GiB':>8}{'seconds':>16}")
        for c in p.costs:
            given = ",".join(f"{k}={v}" for k, v in c.request.parameters.items())
            name = f"{c.request.name}:{given}" if given else c.request.name
            passes = between([w / p.examples for w in c.work])
            lines.append(f"  {name:34}{passes:>16}{c.memory / 2**30:8.2f}{between(c.seconds):>16}")
        lines += [f"  fails: {sentence}" for sentence in p.failures]
    tasks = sum(p.subjects * (len(p.costs) + len(p.failures)) for p in found)
    most = max((c.memory for p in found for c in p.costs), default=math.nan)
    hours = between([sum(p.hours(machine)[i] for p in found) for i in (0, 1)])
    speed = "as fast as this one" if machine.flops is None else f"that sustain {machine.flops:.3g} operations a second"
    lines.append(f"{tasks} tasks, {most / 2**30:.2f} GiB each at the most, {hours} hours on {machine.processes} "
                 f"processes {speed}")
    return "\n".join(lines)


def to_make(wanted: Sequence[FineTuned], requests: Sequence[Request], machine: Machine, measured: Path) -> str:
    """What checkpoints cost that need not exist: a line for every model and data set, and the totals.

    measured: readings of the same requests at another scale, from which the passes of an audit are taken.
    """
    rate = machine.flops or matrix_products_per_second()
    speed = f"{rate:.3g} operations a second" + ("" if machine.flops else ", as in matrix products here")
    audit, known = passes_of(requests, measured)
    lines = [f"{'model, data':64}{'checkpoints':>12}{'examples':>10}{'passes':>12}{'operations':>12}{'hours':>9}"]
    total, unknown = 0.0, 0
    for (model, data), alike in groups(wanted).items():
        examples, flops = size_of(alike[0])
        made = sum(one.passes for one in alike)
        passes = made * GRADIENT + len(alike) * audit  # forward-equivalents over the data
        work = passes * examples * flops
        hours = work / rate / machine.processes / 3600
        total, unknown = (total, unknown + 1) if math.isnan(hours) else (total + hours, unknown)
        lines.append(f"{f'{model}, {data}':64}{len(alike):12}{examples:10,.0f}{passes:12,.0f}{work:12.3g}{hours:9.3g}")
    lines.append(f"{len(wanted)} checkpoints to train, with {len(requests)} requests for each; passes are forward "
                 "passes over the training data or as much work")
    lines.append(f"audits: {audit:.4g} passes each, from {known} of {len(requests)} requests in {measured}" if known
                 else f"audits are left out: {measured} holds no readings of these requests; run the study at its "
                 "small scale into the same folder first")
    lines.append(f"{total:.3g} hours on {machine.processes} processes that sustain {speed}" + (
        f", without {unknown} kinds whose model or data are not here" if unknown else ""))
    return "\n".join(lines)


def groups(wanted: Sequence[FineTuned]) -> dict[tuple[str, str], list[FineTuned]]:
    """By model and by data without its arguments."""
    found: dict[tuple[str, str], list[FineTuned]] = {}
    for one in wanted:
        found.setdefault((one.model, one.train.partition("?")[0].partition("#")[0]), []).append(one)
    return found


def size_of(one: FineTuned) -> tuple[float, float]:
    """Training examples, and operations of a forward pass of one; NaN for what is neither said nor found here."""
    examples, flops = one.examples or math.nan, one.flops or math.nan
    if math.isnan(examples) or math.isnan(flops):
        with contextlib.suppress(InputError):
            train = load_for(one.model, one.train)
            examples = train.size
            if math.isnan(flops):
                model, batch = build(one.model).eval(), next(iter(train)).select(slice(1))
                counter = FlopCounterMode(display=False)
                with counter, torch.no_grad():
                    forward(model, batch)
                flops = counter.get_total_flops()
    return examples, flops


def passes_of(requests: Sequence[Request], measured: Path) -> tuple[float, int]:
    """Forward-equivalents that all requests together took in the median subject, and how many of them are known."""
    if not measured.is_file():
        return 0.0, 0
    frame = pd.read_csv(measured, usecols=["subject", "measure", "params", "passes", "error"], keep_default_na=False)
    frame = frame[frame["error"] == ""].drop_duplicates(["subject", "measure", "params"])
    names = [r.name for r in requests]
    frame = frame[frame["measure"].isin(names)]
    if frame.empty:
        return 0.0, 0
    return float(frame.groupby("subject")["passes"].sum().median()), sum(n in set(frame["measure"]) for n in names)


SIDE = 1024
"""Rows and columns of the matrices whose product tells how fast this machine is."""


def matrix_products_per_second() -> float:
    """Operations per second that float32 matrix products sustain here, the fastest of three."""
    a, seconds = torch.ones(SIDE, SIDE), []
    for _ in range(4):
        began = time.perf_counter()
        linear(a, a)
        seconds.append(time.perf_counter() - began)
    return 2 * SIDE**3 / min(seconds[1:])


def between(ends: Sequence[float]) -> str:
    """1.2, or 1.2 to 3.4."""
    low, high = (f"{end:.3g}" for end in ends)
    return low if low == high else f"{low} to {high}"


def here() -> Machine:
    """The processes that a study takes on this machine where nothing else is asked for."""
    return Machine(min(os.cpu_count() or 1, 8))
