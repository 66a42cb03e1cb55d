"""Where work is carried out: sums over examples, and independent tasks.

Everything that touches data goes through an engine. `LocalEngine` is this process and, for independent tasks, a pool
of processes. An engine of several ranks gives every rank a slice of each batch (`Batch.select`) and all-reduces the
sums, so that all ranks return the same numbers.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
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
    """The only place that knows of processes and ranks."""

    def batch_sums(self, fn: Callable[[Batch], Tensor], batches: Batches) -> Tensor:
        """fn: batch -> sum over its examples, any shape. Returns [batches, ...], float64 on the CPU."""

    def sum(self, fn: Callable[[Batch], Any], batches: Batches | Iterable[Batch]) -> Any:
        """The sum over all batches of fn's tensor, or of each tensor in fn's dict."""

    def examples(self, fn: Callable[[Batch], Tensor], batches: Batches | Iterable[Batch]) -> Tensor:
        """fn: batch -> [batch, ...], one row per example. Returns [examples, ...] on the CPU."""

    def map(self, fn: Callable[[Any], T], tasks: Sequence[Any], description: str) -> Iterator[T]:
        """Independent tasks, in any order of completion."""


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """A progress bar with the time left, for whatever takes over two seconds; silent when not on a terminal."""
    yield from tqdm(items, desc=description, total=total, delay=2, leave=False,
                    disable=True if os.environ.get(QUIET) else None)


def _pass(batches: Batches | Iterable[Batch]) -> Iterator[Batch]:
    return progress(batches, "batches", len(batches) if isinstance(batches, Sized) else None)


@dataclass(frozen=True)
class LocalEngine:
    """This process; `map` spreads tasks over `workers` processes when that is more than one."""

    workers: int = 1

    def batch_sums(self, fn: Callable[[Batch], Tensor], batches: Batches) -> Tensor:
        return torch.stack([fn(b).detach().to(dtype=torch.float64, device="cpu") for b in _pass(batches)])

    def sum(self, fn: Callable[[Batch], Any], batches: Batches | Iterable[Batch]) -> Any:
        total = None
        for batch in _pass(batches):
            part = fn(batch)
            if total is None:
                total = part
            elif isinstance(part, dict):
                total = {k: total[k] + v for k, v in part.items()}
            else:
                total = total + part
        return total

    def examples(self, fn: Callable[[Batch], Tensor], batches: Batches | Iterable[Batch]) -> Tensor:
        return torch.cat([fn(b).detach().cpu() for b in _pass(batches)])

    def map(self, fn: Callable[[Any], T], tasks: Sequence[Any], description: str) -> Iterator[T]:
        if self.workers <= 1 or len(tasks) <= 1:
            yield from progress((fn(t) for t in tasks), description, len(tasks))
            return
        threads = max(1, torch.get_num_threads() // self.workers)
        pool = concurrent.futures.ProcessPoolExecutor(
            min(self.workers, len(tasks)), multiprocessing.get_context("spawn"), _start_worker, (threads,))
        try:
            with _interrupts_held():
                futures = [pool.submit(fn, t) for t in tasks]
            done = concurrent.futures.as_completed(futures)
            yield from progress((f.result() for f in done), description, len(tasks))
        except BaseException:
            for worker in multiprocessing.active_children():  # a long task must not hold up Ctrl-C
                worker.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the end, and in a process that is started inside until it is ready."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker at once, without a traceback each
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ[QUIET] = "1"
    torch.set_num_threads(threads)


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
