"""Batches that do not fit into memory are taken in parts; a worker process that dies is replaced."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from genmeasure.data.batches import Batches
from genmeasure.engine import LocalEngine
from genmeasure.errors import InputError

DATA = Batches.from_arrays(torch.arange(46.0).reshape(23, 2), torch.arange(23), batch_size=8)


def limited(most: int, sizes: list[int], text: str = "CUDA out of memory. Tried to allocate 2.00 GiB"):
    def fn(batch):
        sizes.append(len(batch))
        if len(batch) > most:
            raise torch.OutOfMemoryError(text) if "CUDA" in text else RuntimeError(text)
        return batch.inputs[0]
    return fn


@pytest.mark.parametrize("text", ["CUDA out of memory. Tried to allocate 2.00 GiB",
                                  "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"])
@pytest.mark.parametrize("most", [1, 3, 5, 8])
def test_what_does_not_fit_is_taken_in_parts(most, text):
    sizes, engine = [], LocalEngine()
    rows = engine.examples(limited(most, sizes, text), DATA)
    assert torch.equal(rows, torch.arange(46.0).reshape(23, 2))
    assert sum(n for n in sizes if n <= most) == 23
    assert sum(n > most for n in sizes) <= 3  # the size that fits is kept
    fn = limited(most, sizes, text)
    torch.testing.assert_close(engine.sum(lambda b: fn(b).sum(0), DATA), rows.sum(0))
    torch.testing.assert_close(engine.batch_sums(lambda b: fn(b).sum(0), DATA)[1], rows[8:16].sum(0).double())


def test_one_example_that_does_not_fit_and_other_errors_come_through():
    with pytest.raises(torch.OutOfMemoryError, match=r"2\.00 GiB$"):
        LocalEngine().examples(limited(0, []), DATA)
    sizes = []
    with pytest.raises(RuntimeError, match="shapes$"):
        LocalEngine().examples(limited(4, sizes, "other shapes"), DATA)
    assert sizes == [8]


@dataclass(frozen=True)
class Deadly:
    """Ends its process the first `times` times."""

    marks: Path
    times: int
    name: str

    def __len__(self) -> int:
        return 1


def carry_out(task: Deadly, _: int):
    died = len(list(task.marks.glob(f"{task.name}-*")))
    if died < task.times:
        (task.marks / f"{task.name}-{died}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    yield task.name


@pytest.mark.slow
def test_tasks_of_a_worker_that_was_killed_are_done_again(tmp_path):
    tasks = [Deadly(tmp_path, int(i == 1), str(i)) for i in range(4)]
    assert sorted(LocalEngine(2).map(carry_out, tasks, "")) == ["0", "1", "2", "3"]
    with pytest.raises(InputError, match=r"or take fewer than 2 at a time$"):
        list(LocalEngine(2).map(carry_out, [Deadly(tmp_path, 99, "a"), Deadly(tmp_path, 99, "b")], ""))
