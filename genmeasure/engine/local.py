"""This process, and a pool of processes for independent tasks."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genmeasure.data.batches import Batch, Batches
from genmeasure.engine.protocol import QUIET, T, added, progress, shown, stacking, summing
from genmeasure.errors import InputError

RETRIES = 3
"""Times that tasks are begun again because a worker process died."""


@dataclass(frozen=True)
class LocalEngine:
    """This process; `map` spreads tasks over `workers` processes when that is more than one."""

    workers: int = 1

    lead, copies, remote = True, 1, False

    @property
    def processes(self) -> int:
        return self.workers

    @property
    def within(self) -> LocalEngine:
        return LocalEngine()

    def batch_sums(self, fn: Callable[[Batch], Tensor], batches: Batches) -> Tensor:
        fn = summing(fn)
        return torch.stack([fn(b).detach().to(dtype=torch.float64, device="cpu") for b in shown(batches)])

    def sum(self, fn: Callable[[Batch], Any], batches: Batches | Iterable[Batch]) -> Any:
        fn, total = summing(fn), None
        for batch in shown(batches):
            total = added(total, fn(batch))
        return total

    def examples(self, fn: Callable[[Batch], Tensor], batches: Batches | Iterable[Batch], *,
                 core_each: bool = False) -> Tensor:
        fn = stacking(fn)
        if core_each and torch.get_num_threads() > 1:
            return torch.cat(list(in_threads(lambda b: fn(b).detach().cpu(), shown(batches))))
        return torch.cat([fn(b).detach().cpu() for b in shown(batches)])

    def once(self, fn: Callable[[], T]) -> T:
        return fn()

    def total(self, number: float) -> float:
        return number

    def together(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def map(self, fn: Callable[[Any, int], Iterator[T]], tasks: Sequence[Any], description: str) -> Iterator[T]:
        """Raises `InputError` where worker processes die again and again."""
        if self.workers <= 1 or len(tasks) <= 1:
            yield from (result for task in progress(tasks, description, len(tasks)) for result in fn(task, 0))
            return
        left = dict(enumerate(tasks))
        for _ in range(1 + RETRIES):
            with self._pool(len(left)) as pool:
                with _interrupts_held():
                    futures = {pool.submit(_results, fn, task): number for number, task in left.items()}
                for done in progress(concurrent.futures.as_completed(futures), description, len(futures)):
                    with contextlib.suppress(BrokenProcessPool):  # of all that were not done when a worker died
                        results = done.result()
                        del left[futures[done]]
                        yield from results
            if not left:
                return
        raise InputError(f"worker processes died {1 + RETRIES} times, with {len(left)} tasks left; give them more "
                         f"memory, or take fewer than {self.workers} at a time")

    @contextlib.contextmanager
    def _pool(self, tasks: int) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
        threads = max(1, torch.get_num_threads() // self.workers)
        pool = concurrent.futures.ProcessPoolExecutor(
            min(self.workers, tasks), multiprocessing.get_context("spawn"), _start_worker, (threads,))
        try:
            yield pool
        except BaseException:
            for worker in multiprocessing.active_children():  # a long task must not hold up Ctrl-C
                worker.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def in_threads(fn: Callable[[Batch], T], batches: Iterable[Batch]) -> Iterator[T]:
    """What `fn` gives for each batch, in their order, by as many threads as torch has, which it has one of inside."""
    threads, gradients = torch.get_num_threads(), torch.is_grad_enabled()

    def one(batch: Batch) -> T:
        with torch.set_grad_enabled(gradients):  # which is every thread's own
            return fn(batch)
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
        with concurrent.futures.ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                for batch in batches:
                    waiting.append(pool.submit(one, batch))
                    if len(waiting) > 2 * threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for later in waiting:
                    later.cancel()
    finally:
        torch.set_num_threads(threads)  # what a thread sets for itself, threads that start later take over


def _results(fn: Callable[[Any, int], Iterator[T]], task: Any) -> list[T]:
    return list(fn(task, 0))


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
