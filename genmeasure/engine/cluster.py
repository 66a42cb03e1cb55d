"""Independent tasks on a Ray cluster."""

from __future__ import annotations

import collections
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from genmeasure.engine.local import LocalEngine
from genmeasure.engine.protocol import QUIET, T
from genmeasure.errors import InputError

RETRIES = 3
"""Times that a task is begun again because its process, or the machine under it, was lost."""
AHEAD = 2
"""Tasks handed in beyond those that run, so that no process waits for the next one."""


@dataclass(frozen=True)
class Resources:
    """What a task takes of a machine. cpus also sets its threads; gpus may be a fraction; memory is in bytes."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0

    @property
    def options(self) -> dict[str, float]:
        """As Ray is told."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, **({"memory": self.memory} if self.memory else {})}


class _Running:
    """A task under way: how many of its results came, and how often it was lost."""

    def __init__(self, number: int):
        self.number, self.came, self.lost = number, 0, 0


@dataclass(frozen=True)
class RayEngine(LocalEngine):
    """`map` hands tasks to the Ray cluster that this process is connected to; sums over examples are this process's.

    Results come back to this process as they are made, so machines need no common disk for them; the checkpoints and
    data that tasks name must be found on each.
    """

    resources: Resources = field(default_factory=Resources)

    remote = True

    @property
    def processes(self) -> int:
        """Tasks that run at a time on the machines that are there now."""
        total = imported().cluster_resources()
        wanted = {"CPU": self.resources.cpus, "GPU": self.resources.gpus, "memory": self.resources.memory}
        return max(1, int(min(total.get(k, 0) // v for k, v in wanted.items() if v)))

    def map(self, fn: Callable[[Any, int], Iterator[T]], tasks: Sequence[Any], description: str) -> Iterator[T]:
        """Raises `InputError` where the cluster has no machine for such a task, or loses one again and again."""
        ray = imported()
        self._check(ray)
        carry_out = ray.remote(num_returns="streaming", max_retries=0, **self.resources.options)(_carry_out)
        where = os.getcwd(), [p for p in sys.path if p]
        waiting = collections.deque(_Running(number) for number in range(len(tasks)))
        under_way: dict[Any, _Running] = {}  # by the stream of the task's results
        with tqdm(total=sum(map(len, tasks)), desc=description, delay=2, leave=False, disable=None) as bar:
            try:
                while waiting or under_way:
                    while waiting and len(under_way) < AHEAD + self.processes:
                        task = waiting.popleft()
                        under_way[carry_out.remote(fn, tasks[task.number], task.came, where, self.resources)] = task
                    (results,), _ = ray.wait(list(under_way), num_returns=1, fetch_local=False)
                    task = under_way[results]
                    try:
                        result = ray.get(next(results))
                    except StopIteration:
                        del under_way[results]
                        continue
                    except ray.exceptions.RayTaskError as error:
                        raise error.as_instanceof_cause() from None
                    except ray.exceptions.RayError as error:
                        del under_way[results]
                        self._lost(task, error)
                        waiting.appendleft(task)
                        continue
                    task.came += 1
                    bar.update()
                    yield result
            finally:
                for results in under_way:
                    with contextlib.suppress(Exception):  # the cluster may be what failed
                        ray.cancel(results, force=True)

    def _check(self, ray: Any) -> None:
        wanted = {"CPU": self.resources.cpus, "GPU": self.resources.gpus, "memory": self.resources.memory}
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(machine.get(k, 0) >= v for k, v in wanted.items()) for machine in machines):
            have = "; ".join(", ".join(f"{machine.get(k, 0):g} {k}" for k in wanted) for machine in machines)
            raise InputError(f"a task takes {', '.join(f'{v:g} {k}' for k, v in wanted.items())}, and the cluster has "
                             f"machines with {have}; ask for less, or add a machine")

    def _lost(self, task: _Running, error: Exception) -> None:
        task.lost += 1
        if task.lost > RETRIES:
            raise InputError(f"task {task.number} was lost {task.lost} times ({type(error).__name__}); give tasks more "
                             "memory, or look at the cluster") from error


@contextlib.contextmanager
def connected(address: str | None, resources: Resources) -> Iterator[RayEngine]:
    """The engine of a Ray cluster.

    address: of the cluster's head, `auto` for one that runs on this machine; without it a cluster is started here that
    ends with the block. Raises `InputError` where it cannot be reached.
    """
    ray = imported()
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"the Ray cluster {address or 'of this machine'!r} cannot be reached "
                         f"({(str(error).splitlines() or [''])[0]}); give the address of its head, as in "
                         "ray:10.0.0.1:6379, or ray to start one here") from error
    try:
        yield RayEngine(resources=resources)
    finally:
        ray.shutdown()


def _carry_out(fn: Callable, task: Any, start: int, where: tuple[str, list[str]],
               resources: Resources) -> Iterator[Any]:
    """In the process of a task: as if started where the run was."""
    folder, path = where
    if Path(folder).is_dir():
        os.chdir(folder)
    sys.path += [p for p in path if p not in sys.path]
    os.environ[QUIET] = "1"
    torch.set_num_threads(max(1, int(resources.cpus)))
    yield from fn(task, start)


def imported() -> Any:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a task without GPUs leaves the variables alone
    try:
        import ray
    except ImportError as error:
        raise InputError('the package ray is not installed; install it with `pip install "genmeasure[ray]"`') from error
    return ray
