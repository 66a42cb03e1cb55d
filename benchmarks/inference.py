"""Peak memory of `route=forward` of hessian-trace against plain inference, each in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import ours
import torch
from harness import Row, Setting, Skipped, say
from memory import asked, in_processes, peak

import genmeasure as gm
from genmeasure.risk import FORWARD
from genmeasure.subject import Subject

SIDES = ("route", "inference")


def memory(setting: Setting) -> Iterator[Row]:
    """Memory above the level after loading, in MiB."""
    for route, plain in in_processes(__file__, SIDES, setting, ("relu", "encoder", "vit")):
        yield Row(f"peak memory in MiB, {route['label']}, plain inference / route=forward", route["peak"],
                  plain["peak"], f"batches of {route['batch']}; above the level after loading; the target of at most "
                  "1.2 times plain inference is a ratio of 0.83", route["passes"], plain["passes"])


@torch.inference_mode()
def infer(subject: Subject) -> None:
    """The loss of all the data."""
    subject.engine.sum(subject.risk.batch_loss, subject.train)


def forward_trace(subject: Subject) -> ours.Answer:
    """At most as many draws as the first sample has, in every layer, and as many examples as there are.

    Draws follow each other and leave nothing behind, so that more of them take no more memory.
    """
    frame = gm.measure(ours.fresh(subject), "hessian-trace", route="forward", rtol=10.0, layer_rtol=10.0, max_passes=1)
    return ours.Answer(frame["value"].iloc[-1], frame["passes"].iloc[0])


def child(arguments: Sequence[str] | None = None) -> dict:
    """One side on one network, after a warm-up on two examples that loads the code."""
    try:
        side, case = asked(__doc__.splitlines()[0], SIDES, arguments)
    except Skipped as reason:
        return {"left out": str(reason)}
    subject, few, device = case.subject, case.first(2), case.subject.risk.device
    found = {"label": case.label, "batch": max(subject.train.lengths), "passes": FORWARD}
    if side == "inference":
        infer(few)
        return {**found, "peak": peak(device, lambda: infer(subject))}
    forward_trace(few)
    answers = []
    found["peak"] = peak(device, lambda: answers.append(forward_trace(subject)))
    return {**found, "passes": answers[0].passes}


if __name__ == "__main__":
    say(json.dumps(child()))
