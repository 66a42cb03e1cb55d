"""A function on several ranks: processes that share this one's memory up to the start, joined by gloo."""

from __future__ import annotations

import io
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from genmeasure.engine.ranks import Ranks


def on_ranks(size: int, fn: Callable[[Ranks], Any]) -> list[Any]:
    """What `fn(engine)` returns on every rank; a rank that dies gives None, one that raises its traceback as text."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pipes, ran = [], []
        for rank in range(size):
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(rank, size, Path(folder) / "meeting", fn, there))
            process.start()
            there.close()
            pipes.append(here)
            ran.append(process)
        found = []
        for pipe in pipes:
            try:
                found.append(torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=False))
            except EOFError:
                found.append(None)
        for process in ran:
            process.join()
    return found


def _run(rank: int, size: int, meeting: Path, fn: Callable[[Ranks], Any], pipe: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    try:
        result = fn(Ranks(torch.device("cpu")))
    except BaseException:
        result = traceback.format_exc()
    data = io.BytesIO()
    torch.save(result, data)
    pipe.send_bytes(data.getvalue())
    pipe.close()
    os._exit(0)  # what the parent registered for its end is the parent's
