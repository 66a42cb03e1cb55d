"""What every benchmark shares: its command line, interleaved timing, and the table it prints and writes."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import datetime
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")
RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Timed(Generic[T]):
    """One run of one side."""

    seconds: float
    result: T


@dataclass(frozen=True)
class Row:
    """One comparison. ours, theirs: seconds; ratio: theirs / ours; at_equal: at which standard error or accuracy.

    passes: forward-equivalents over the data (a gradient is 3, a Hessian-vector product 9).
    """

    comparison: str
    ours: float
    theirs: float
    at_equal: str
    passes_ours: float
    passes_theirs: float

    @property
    def ratio(self) -> float:
        return self.theirs / self.ours


COLUMNS = ("comparison", "ours", "theirs", "ratio", "at_equal", "passes_ours", "passes_theirs", "device", "torch",
           "date")


def parser(description: str) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--device", default="cpu", help="cpu or cuda")
    result.add_argument("--quick", action="store_true", help="fewer examples, probes and repeats")
    result.add_argument("--threads", type=int, default=1, help="threads of torch on the CPU, for both sides")
    result.add_argument("--examples", type=int, help="at most so many examples in every comparison")
    result.add_argument("--repeats", type=int, help="runs of each side; medians are shown")
    result.add_argument("--only", nargs="+", metavar="NAME", help="only these comparisons")
    result.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV")
    return result


def interleaved(sides: Mapping[str, Callable[[int], Any]], repeats: int,
                device: torch.device) -> dict[str, list[Timed]]:
    """Run the sides in turn, `repeats` times (ours, theirs, ours, theirs, ...); each is given the number of the run.

    Warming up is the caller's business. The work queued on an accelerator is waited for.
    """
    runs: dict[str, list[Timed]] = {name: [] for name in sides}
    for number in range(repeats):
        for name, side in sides.items():
            synchronize(device)
            start = time.perf_counter()
            result = side(number)
            synchronize(device)
            runs[name].append(Timed(time.perf_counter() - start, result))
    return runs


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(runs: Sequence[Timed]) -> float:
    return statistics.median(run.seconds for run in runs)


def device_name(device: torch.device) -> str:
    """The device and what of it was used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} of {os.cpu_count()} cores)"


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def table(rows: Sequence[Row]) -> str:
    """The comparisons as a Markdown table."""
    lines = ["| comparison | ours (s) | theirs (s) | ratio | at equal | passes ours | passes theirs |",
             "|---|---:|---:|---:|---|---:|---:|"]
    lines += [f"| {r.comparison} | {r.ours:.3g} | {r.theirs:.3g} | {r.ratio:,.3g} | {r.at_equal} | "
              f"{r.passes_ours:,.3g} | {r.passes_theirs:,.3g} |" for r in rows]
    return "\n".join(lines)


def write(rows: Sequence[Row], path: Path, device: torch.device) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shared = {"device": device_name(device), "torch": torch.__version__, "date": datetime.date.today().isoformat()}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**dataclasses.asdict(row), "ratio": row.ratio, **shared} for row in rows)
