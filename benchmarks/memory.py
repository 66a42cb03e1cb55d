"""Peak memory of a trace against one training step on a batch of the same size, each in a process of its own."""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import ours
import torch
from encoders import encoder
from harness import Row, Setting, Skipped, say
from networks import Case, piecewise_linear, vision_transformer
from torch import nn

from genmeasure.data.batches import Batch
from genmeasure.layers import forward
from genmeasure.risk import GRADIENT

RTOL = 0.5
"""The first sample takes as much memory as those that follow."""
CASES: dict[str, Callable[[int, str], Case]] = {"relu": piecewise_linear, "encoder": encoder,
                                                "vit": vision_transformer}
SIDES = ("trace", "step")
MEBIBYTE = 2**20
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Makes glibc give larger blocks back as soon as they are freed: what its heap keeps varies twofold between runs."""
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def memory(setting: Setting) -> Iterator[Row]:
    """Memory above the level after loading, in MiB."""
    for trace, step in in_processes(__file__, SIDES, setting, ("relu", "encoder")):
        yield Row(f"peak memory in MiB, {trace['label']}, a training step / hessian-trace", trace["peak"], step["peak"],
                  f"batches of {trace['batch']}; above the level after loading; the step is one of plain SGD on all "
                  "weights in training mode; the target of at most 1.5 steps is a ratio of 0.67", trace["passes"],
                  GRADIENT)


def in_processes(script: str, sides: Sequence[str], setting: Setting, cases: Sequence[str]) -> Iterator[list[dict]]:
    """What `script` printed last for each of its sides, network by network; those left out are said."""
    if setting.device.type == "cpu" and not CLEAR.exists():
        raise Skipped("the peak of a process is read from /proc, which is not there")
    sizes = {"relu": setting.examples(2_048, 256), "encoder": setting.examples(128, 64),
             "vit": setting.examples(256, 128)}
    for name in cases:
        found = [_in_a_process(script, name, side, sizes[name], setting) for side in sides]
        if None not in found:
            yield found


def _in_a_process(script: str, name: str, side: str, examples: int, setting: Setting) -> dict | None:
    done = subprocess.run([sys.executable, script, name, side, str(examples), setting.device.type,
                           str(torch.get_num_threads())], capture_output=True, text=True, check=False,
                          env={**os.environ, **AT_ONCE})
    if done.returncode:
        raise RuntimeError(f"the process that measures the memory of {name} failed:\n{done.stderr}")
    *notes, last = done.stdout.splitlines()
    for note in notes:
        say(note)
    found = json.loads(last)
    if "left out" in found:
        say(f"  left out: {found['left out']}")
        return None
    return found


def asked(description: str, sides: Sequence[str], arguments: Sequence[str] | None) -> tuple[str, Case]:
    """The side and the network that the command line of such a process names; raises `Skipped`."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("case", choices=CASES)
    options.add_argument("side", choices=sides)
    options.add_argument("examples", type=int)
    options.add_argument("device")
    options.add_argument("threads", type=int)
    given = options.parse_args(arguments)
    torch.set_num_threads(given.threads)
    return given.side, CASES[given.case](given.examples, given.device)


def peak(device: torch.device, call: Callable[[], object]) -> float:
    """MiB that `call` needed at its worst, above what was held before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / MEBIBYTE
    ctypes.CDLL(None).malloc_trim(0)  # what was freed would be filled again unseen
    CLEAR.write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """MiB, of a line such as `VmHWM:  1234 kB`."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def step(model: nn.Module, batch: Batch) -> None:
    model.train().requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    nn.functional.cross_entropy(forward(model, batch), batch.targets).backward()
    optimizer.step()


def child(arguments: Sequence[str] | None = None) -> dict:
    """One side on one network, after a warm-up on two examples that loads the code."""
    try:
        side, case = asked(__doc__.splitlines()[0], SIDES, arguments)
    except Skipped as reason:
        return {"left out": str(reason)}
    subject, few = case.subject, case.first(2)
    batch = subject.risk.place(next(iter(subject.train)))
    found = {"label": case.label, "batch": len(batch), "passes": GRADIENT}
    if side == "step":
        step(copy.deepcopy(few.model), batch.select(slice(2)))
        return {**found, "peak": peak(subject.risk.device, lambda: step(subject.model, batch))}
    ours.traces(few, 0, 1.0)
    answers = []
    found["peak"] = peak(subject.risk.device, lambda: answers.append(ours.traces(subject, 0, RTOL)))
    return {**found, "passes": answers[0].passes}


if __name__ == "__main__":
    say(json.dumps(child()))
