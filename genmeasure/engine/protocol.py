"""What an engine is, and what all of them use."""

from __future__ import annotations

import contextlib
import functools
import logging
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
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")
"""What torch says of an accelerator's memory, and of the host's."""
log = logging.getLogger("genmeasure")


class Engine(Protocol):
    """The only place that knows of processes and ranks.

    `fn` of the first three may be given a part of a batch, where a whole one does not fit into memory or ranks share
    it: what it returns must be a sum over examples or rows of examples, and what it draws must depend on the batch's
    `index`, its `rows` and a seed alone. Its result is the engine's to change.
    """

    def batch_sums(self, fn: Callable[[Batch], Tensor], batches: Batches) -> Tensor:
        """fn: batch -> sum over its examples, any shape. Returns [batches, ...], float64 on the CPU."""

    def sum(self, fn: Callable[[Batch], Any], batches: Batches | Iterable[Batch]) -> Any:
        """The sum over all batches of fn's tensor, or of each tensor in fn's dict."""

    def examples(self, fn: Callable[[Batch], Tensor], batches: Batches | Iterable[Batch], *,
                 core_each: bool = False) -> Tensor:
        """fn: batch -> [batch, ...], one row per example. Returns [examples, ...] on the CPU.

        core_each: fn runs operations alone, on few examples, so that a core for each batch does more than all for one.
        """

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


class Fitted:
    """A function of batches, in parts where a whole batch does not fit into memory.

    join: what it gave for the parts -> what it would have given for the batch. The size that fits is found by halving,
    and kept; raises what torch raises where a single example does not fit. Attempts that failed count as passes.
    """

    def __init__(self, fn: Callable[[Batch], Any], join: Callable[[list], Any]):
        self.fn, self.join, self.most = fn, join, None

    def __call__(self, batch: Batch) -> Any:
        parts, found = batch.split(self.most or len(batch)), []
        while parts:
            fits = self._tried(parts[0], found)
            if fits:
                parts = parts[1:]
            else:
                self.most = max(1, len(parts[0]) // 2)
                log.info("%d examples do not fit into memory; going on with %d at a time", len(parts[0]), self.most)
                parts = [half for part in parts for half in part.split(self.most)]
        return self.join(found)

    def _tried(self, part: Batch, found: list) -> bool:
        """Whether it fits; what was held for the attempt is let go on return."""
        try:
            found.append(self.fn(part))
        except RuntimeError as error:  # OutOfMemoryError of an accelerator is one
            if len(part) == 1 or not any(text in str(error) for text in OUT_OF_MEMORY):
                raise
            torch.cuda.empty_cache()
            return False
        return True


def summing(fn: Callable[[Batch], Any]) -> Fitted:
    return Fitted(fn, lambda parts: functools.reduce(added, parts))


def stacking(fn: Callable[[Batch], Tensor]) -> Fitted:
    return Fitted(fn, torch.cat)


@contextlib.contextmanager
def float32_products(precision: str = "ieee") -> Iterator[None]:
    """Products of float32 numbers as exact as float32 is (`ieee`), or of factors rounded to 10 bits (`tf32`).

    By default cuDNN rounds the factors of its convolutions to the 10 bits of TF32, which hides what little noise does
    to a loss; matrix products do so where the user asked for it.
    """
    places = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = precision
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


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
