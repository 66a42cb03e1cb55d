"""Peak memory of `route=forward` of hessian-trace against plain inference, each in a process of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence

import ours
import torch
from harness import Row, Setting, Skipped, say
from memory import CASES, CLEAR, peak

import genmeasure as gm
from genmeasure.risk import FORWARD
from genmeasure.subject import Subject

SIDES = ("route", "inference")


def memory(setting: Setting) -> Iterator[Row]:
    """Memory above the level after loading, in MiB."""
    if setting.device.type == "cpu" and not CLEAR.exists():
        raise Skipped("the peak of a process is read from /proc, which is not there")
    sizes = {"relu": setting.examples(2_048, 256), "encoder": setting.examples(128, 64)}
    for name, examples in sizes.items():
        found = {side: in_a_process(name, side, examples, setting) for side in SIDES}
        if None in found.values():
            continue
        route, plain = found["route"], found["inference"]
        yield Row(f"peak memory in MiB, {route['label']}, plain inference / route=forward", route["peak"],
                  plain["peak"], f"batches of {route['batch']}; above the level after loading; the target of at most "
                  "1.2 times plain inference is a ratio of 0.83", route["passes"], plain["passes"])


def in_a_process(name: str, side: str, examples: int, setting: Setting) -> dict | None:
    """What the process printed last, or None where it had to leave the network out."""
    done = subprocess.run([sys.executable, __file__, name, side, str(examples), setting.device.type,
                           str(torch.get_num_threads())], capture_output=True, text=True, check=False)
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


@torch.inference_mode()
def infer(subject: Subject) -> None:
    """The loss of all the data."""
    subject.engine.sum(subject.risk.batch_loss, subject.train)


def forward_trace(subject: Subject) -> ours.Answer:
    """As many draws as the first sample has, in every layer."""
    frame = gm.measure(ours.fresh(subject), "hessian-trace", route="forward", rtol=10.0, layer_rtol=10.0)
    return ours.Answer(frame["value"].iloc[-1], frame["passes"].iloc[0])


def child(arguments: Sequence[str] | None = None) -> dict:
    """One side on one network, after a warm-up on two examples that loads the code."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("case", choices=CASES)
    options.add_argument("side", choices=SIDES)
    options.add_argument("examples", type=int)
    options.add_argument("device")
    options.add_argument("threads", type=int)
    given = options.parse_args(arguments)
    torch.set_num_threads(given.threads)
    try:
        case = CASES[given.case](given.examples, given.device)
    except Skipped as reason:
        return {"left out": str(reason)}
    subject, few, device = case.subject, case.first(2), case.subject.risk.device
    found = {"label": case.label, "batch": max(subject.train.lengths), "passes": FORWARD}
    if given.side == "inference":
        infer(few)
        return {**found, "peak": peak(device, lambda: infer(subject))}
    forward_trace(few)
    answers = []
    found["peak"] = peak(device, lambda: answers.append(forward_trace(subject)))
    return {**found, "passes": answers[0].passes}


if __name__ == "__main__":
    say(json.dumps(child()))
