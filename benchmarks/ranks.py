"""Two ranks of torch.distributed against one process, each with one thread, in turn in one run.

Rank 0 first works alone, with the other one waiting, then both together. `ours` and `theirs` are seconds on the clock
of the two ranks and of the one process. Where other programs use the machine, the clock shows them too, so the longest
way is given beside it: from one message between the ranks to the next, the processor time of the rank that used most.
The efficiency is the one process's time over twice that of the two ranks.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from harness import Row, merged, parser, percent, read, recorded, say, table, write
from networks import piecewise_linear

from genmeasure.engine import Engine, LocalEngine
from genmeasure.engine.ranks import Ranks, joined, leads
from genmeasure.shared import Shared
from genmeasure.study import Request
from genmeasure.study import read as readings_of
from genmeasure.subject import Subject

COUNT = 2
MEASURED = {
    "trace": (8192, Request("hessian-trace", {"rtol": 0.01, "layer_rtol": 0.05})),
    "trace-hutchinson": (512, Request("hessian-trace", {"route": "hutchinson", "max_passes": 2})),
    "noise-curve": (512, Request("noise-stability", {"rtol": 0.2, "sigmas": (0.01, 0.015, 0.02)})),
    "top-eigenvalue": (512, Request("hessian-top", {"k": 1, "rtol": 0.05})),
}


class Watched(Ranks):
    """Ranks that note the processor time between one message and the next, and in messages."""

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.begin()

    def begin(self) -> None:
        self.stretches, self._last = [], time.process_time()

    def _heard(self, *told: Any) -> Any:
        self.stretches.append(time.process_time() - self._last)
        found = super()._heard(*told)
        self._last = time.process_time()
        return found


def fresh(subject: Subject, engine: Engine) -> Subject:
    """The subject with another engine and nothing remembered."""
    return replace(subject, engine=engine, shared=Shared())


def alone(subject: Subject, request: Request) -> tuple[float, float, Any]:
    """Seconds, processor seconds and readings of one process."""
    began, used = time.perf_counter(), time.process_time()
    readings = readings_of(fresh(subject, LocalEngine()), request)
    return time.perf_counter() - began, time.process_time() - used, readings


def shared(subject: Subject, request: Request, engine: Watched) -> tuple[float, float, Any]:
    """Seconds, processor seconds of the longest way, and readings of all ranks."""
    dist.barrier()
    engine.begin()
    began = time.perf_counter()
    readings = readings_of(fresh(subject, engine), request)
    seconds = time.perf_counter() - began
    own = torch.tensor([*engine.stretches, time.process_time() - engine._last], dtype=torch.float64)
    every = [torch.empty_like(own) for _ in range(engine.size)]
    dist.all_gather(every, own)
    return seconds, torch.stack(every).max(0).values.sum().item(), readings


def compared(subject: Subject, request: Request, engine: Watched, repeats: int) -> tuple[Row, float]:
    ones, twos = [], []
    for number in range(repeats + 1):  # the first warms both up
        one = alone(subject, request) if engine.lead else None
        dist.barrier()
        two = shared(subject, request, engine)
        if number:
            ones.append(one)
            twos.append(two)
    if not engine.lead:
        return None, 0.0
    apart = max(((a[2]["value"] - b[2]["value"]).abs() / a[2]["value"].abs()).max()
                for a, b in zip(ones, twos, strict=True))
    (clock, used), (clock_two, used_two) = ([statistics.median(run[i] for run in runs) for i in (0, 1)]
                                            for runs in (ones, twos))
    passes = ones[0][2]["passes"].iloc[0]
    text = (f"efficiency {percent(clock / engine.size / clock_two)} by the clock, "
            f"{percent(used / engine.size / used_two)} by processor time of the longest way ({used:.3g} s and "
            f"{used_two:.3g} s); {len(engine.stretches)} messages; readings apart by {apart:.1g}")
    return Row(f"{request.name}, {subject.name}, {subject.train.size:,} examples, one process / {engine.size} ranks",
               clock_two, clock, text, passes, passes), apart


def main() -> int:
    options: Callable = parser(__doc__.splitlines()[0], MEASURED)
    given = options.parse_args()
    torch.set_num_threads(1)
    path, names = given.out / "ranks-cpu.csv", given.only or list(MEASURED)
    with joined("cpu"):
        engine, shown = Watched(torch.device("cpu")), []
        for name in names:
            examples, request = MEASURED[name]
            examples = min(192 if given.quick else examples, given.examples or examples)
            subject = piecewise_linear(examples, "cpu").subject
            row, _ = compared(subject, request, engine, given.repeats or (2 if given.quick else 3))
            if leads():
                shown.append({**recorded(row, engine.device), "comparison": f"{name}: {row.comparison}"})
                say(f"  {name}: {row.at_equal}")
                write(merged(read(path), name, shown[-1:], list(MEASURED)), path)
        if leads():
            say(table(shown))
    return 0


if __name__ == "__main__":
    if "RANK" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                                  str(COUNT), *sys.argv])
    raise SystemExit(main())
