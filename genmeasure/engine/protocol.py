"""What an engine is, and what all of them use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from genmeasure.data.batches import Batch, Batches
from genmeasure.errors import InputError

T = TypeVar("T")
QUIET = "GENMEASURE_QUIET"
"""Environment variable that silences progress bars (set in worker processes)."""


class Engine(Protocol):
    """The only place that knows of processes and ranks.

    `fn` of the first three may be given a part of a batch: what it returns must be a sum over examples or rows of
    examples, and what it draws must depend on the batch's `index`, its `rows` and a seed alone. Its result is the
    engine's to change.
    """

    def batch_sums(self, fn: Callable[[Batch], Tensor], batches: Batches) -> Tensor:
        """fn: batch -> sum over its examples, any shape. Returns [batches, ...], float64 on the CPU."""

    def sum(self, fn: Callable[[Batch], Any], batches: Batches | Iterable[Batch]) -> Any:
        """The sum over all batches of fn's tensor, or of each tensor in fn's dict."""

    def examples(self, fn: Callable[[Batch], Tensor], batches: Batches | Iterable[Batch]) -> Tensor:
        """fn: batch -> [batch, ...], one row per example. Returns [examples, ...] on the CPU."""

    def map(self, fn: Callable[[Any, int], Iterator[T]], tasks: Sequence[Any], description: str) -> Iterator[T]:
        """Independent tasks: what `fn(task, 0)` yields for each, `len(task)` results, in any order of the tasks.

        A task that is lost on the way is carried out again, as `fn(task, number)` after `number` results of it came.
        """

    def once(self, fn: Callable[[], T]) -> T:
        """fn() of one process, and its result on all of them."""

    def together(self) -> contextlib.AbstractContextManager:
        """Around what may fail in one process alone: an exception leaves the block in all of them, or in none."""

    def total(self, number: float) -> float:
        """The sum of the processes' numbers."""

    @property
    def remote(self) -> bool:
        """Whether tasks of `map` may run where this process's files are not."""

    @property
    def processes(self) -> int:
        """Tasks of `map` that run at a time."""

    @property
    def copies(self) -> int:
        """How many processes do at present what this one does: one in `fn`, whose work they share, all outside."""

    @property
    def within(self) -> Engine:
        """The engine of a task that `map` carries out."""

    @property
    def lead(self) -> bool:
        """Whether this is the process that writes files and speaks to the user."""


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """A progress bar with the time left, for whatever takes over two seconds; silent when not on a terminal."""
    yield from tqdm(items, desc=description, total=total, delay=2, leave=False,
                    disable=True if os.environ.get(QUIET) else None)


def shown(batches: Batches | Iterable[Batch]) -> Iterator[Batch]:
    """The batches, with progress."""
    return progress(batches, "batches", len(batches) if isinstance(batches, Sized) else None)


def added(total: Any, part: Any) -> Any:
    """The sum of two tensors, or of two dicts of tensors key by key; None is zero."""
    if total is None:
        return part
    return {k: total[k] + v for k, v in part.items()} if isinstance(part, dict) else total + part


def get_device(name: str) -> torch.device:
    """`auto` (cuda, then mps, then cpu), or a device by name; one that is not there raises `InputError`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"the device {name!r} cannot be used ({str(error).splitlines()[0]}); "
                         "choose one of auto, cpu, cuda, cuda:1, mps") from error
    return device
