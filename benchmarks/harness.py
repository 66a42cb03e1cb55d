"""What every benchmark shares: its command line, interleaved timing, and the table it prints and writes."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import datetime
import importlib
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from genmeasure.engine import float32_products, get_device

T = TypeVar("T")
RESULTS = Path(__file__).with_name("results")
COLUMNS = ("comparison", "ours", "theirs", "ratio", "at_equal", "passes_ours", "passes_theirs", "device", "torch",
           "date")


@dataclass(frozen=True)
class Row:
    """One comparison. ours, theirs: seconds unless `comparison` names a unit; at_equal: at which accuracy.

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


class Skipped(Exception):
    """A comparison cannot be carried out here; says why and what to install."""


@dataclass(frozen=True)
class Setting:
    """What the command line asked for."""

    device: torch.device
    quick: bool
    most_examples: int | None = None
    most_repeats: int | None = None
    minutes: float | None = None

    def of(self, full: T, quick: T) -> T:
        """The size of a full or a quick run."""
        return quick if self.quick else full

    def examples(self, full: int, quick: int) -> int:
        return min(self.of(full, quick), self.most_examples or full)

    @property
    def repeats(self) -> int:
        """Runs of each side; two at least, where nothing else is asked for, so that a median means something."""
        return self.most_repeats or self.of(3, 2)


Comparison = Callable[[Setting], Iterator[Row]]


# timing

@dataclass(frozen=True)
class Timed(Generic[T]):
    """One run of one side."""

    seconds: float
    result: T


def interleaved(sides: Mapping[str, Callable[[int], Any]], repeats: int | Mapping[str, int], device: torch.device,
                clock: Callable[[], float] = time.perf_counter) -> dict[str, list[Timed]]:
    """Run the sides in turn (ours, theirs, ours, theirs, ...), each `repeats` times or as many as it has there.

    A side is given the number of the run. Warming up is the caller's business. The work queued on an accelerator is
    waited for. clock: in seconds; `time.process_time` does not see what other processes take, nor what a GPU does.
    """
    times = repeats if isinstance(repeats, Mapping) else dict.fromkeys(sides, repeats)
    runs: dict[str, list[Timed]] = {name: [] for name in sides}
    for number in range(max(times.values())):
        for name, side in sides.items():
            if number < times[name]:
                synchronize(device)
                start = clock()
                result = side(number)
                synchronize(device)
                runs[name].append(Timed(clock() - start, result))
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


def hide_broken_torchvision() -> None:
    """Its wheel does not import beside a torch for the CPU; packages that may do without it must not find it then."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        sys.modules["torchvision"] = None


# what is shown and kept

def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def percent(fraction: float) -> str:
    return f"{100 * fraction:.2g} %"


def recorded(row: Row, device: torch.device) -> dict[str, Any]:
    """A row in the columns of the CSV."""
    return {**dataclasses.asdict(row), "ratio": row.ratio, "device": device_name(device), "torch": torch.__version__,
            "date": datetime.date.today().isoformat()}


def owner(row: Mapping[str, Any]) -> str:
    """The comparison that a row of the CSV belongs to: what stands before the colon."""
    return row["comparison"].partition(":")[0]


def read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """To a temporary name, then renamed: an interrupted run leaves no half a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def merged(old: Sequence[Mapping[str, Any]], name: str, new: Sequence[Mapping[str, Any]],
           order: Sequence[str]) -> list[Mapping[str, Any]]:
    """`old` with the rows of the comparison `name` replaced by `new`, in the order of the comparisons."""
    kept = [row for row in old if owner(row) in order and owner(row) != name]
    return sorted([*kept, *new], key=lambda row: order.index(owner(row)))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the CSV as a Markdown table."""
    lines = ["| comparison | ours | theirs | ratio | at equal | passes ours | passes theirs |",
             "|---|---:|---:|---:|---|---:|---:|"]
    for row in rows:
        ours, theirs, ratio, passes, others = (
            f"{float(row[key]):,.3g}" for key in ("ours", "theirs", "ratio", "passes_ours", "passes_theirs"))
        lines.append(f"| {row['comparison']} | {ours} | {theirs} | {ratio} | {row['at_equal']} | {passes} | {others} |")
    return "\n".join(lines)


# command line

def parser(description: str, comparisons: Mapping[str, Comparison]) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=description, epilog=f"comparisons: {', '.join(comparisons)}")
    result.add_argument("--device", default="cpu", help="cpu or cuda")
    result.add_argument("--quick", action="store_true", help="fewer examples, probes and repeats")
    result.add_argument("--threads", type=int, default=1, help="threads of torch on the CPU, for both sides")
    result.add_argument("--examples", type=int, help="at most so many examples in every comparison")
    result.add_argument("--repeats", type=int, help="runs of each side; medians are shown")
    result.add_argument("--minutes", type=float, help="of each comparison, where the script keeps to them (gpu.py)")
    result.add_argument("--only", nargs="+", metavar="NAME", help="only these comparisons; other rows are kept")
    result.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV")
    return result


def main(name: str, description: str, comparisons: Mapping[str, Comparison],
         arguments: Sequence[str] | None = None) -> int:
    """Carry out the comparisons and write `name`-DEVICE.csv after each; 1 where one of them failed."""
    options = parser(description, comparisons)
    given = options.parse_args(arguments)
    unknown = set(given.only or ()) - set(comparisons)
    if unknown:
        options.error(f"there is no comparison {sorted(unknown)[0]!r}; choose from {', '.join(comparisons)}")
    torch.set_num_threads(given.threads)
    setting = Setting(get_device(given.device), given.quick, given.examples, given.repeats, given.minutes)
    path, shown, failures = given.out / f"{name}-{setting.device.type}.csv", [], []
    for chosen in given.only or comparisons:
        say(f"{chosen}:")
        began = time.perf_counter()
        rows = []
        try:
            with float32_products():  # for the other sides, too
                for row in comparisons[chosen](setting):
                    rows.append({**recorded(row, setting.device), "comparison": f"{chosen}: {row.comparison}"})
                    say(f"  {rows[-1]['comparison']}: {row.ratio:,.3g}")
                    write(merged(read(path), chosen, rows, list(comparisons)), path)
        except Skipped as reason:
            say(f"  left out: {reason}")
        except Exception:  # a long run goes on; the exit status and the last lines tell
            traceback.print_exc()
            failures.append(chosen)
        say(f"  took {time.perf_counter() - began:,.0f} s")
        shown += rows
    say(table(shown))
    say(f"written: {path}")
    if failures:
        say(f"FAILED: {', '.join(failures)}")
    return int(bool(failures))
