"""Peak memory of a GPU where the host keeps activations, or the vectors of an iteration, against where it does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from harness import Row, Setting, Skipped, interleaved, main, median_seconds
from memory import peak
from networks import piecewise_linear

import genmeasure as gm
from genmeasure.curvature import memory
from genmeasure.curvature.products import batch_hessian_product
from genmeasure.risk import HESSIAN_PRODUCT
from genmeasure.shared import Shared
from genmeasure.subject import Subject

VECTORS = 60
"""Of the iteration, at most."""


def on_cuda(setting: Setting) -> Subject:
    if setting.device.type != "cuda":
        raise Skipped("what the host keeps for a GPU is measured with --device cuda")
    return piecewise_linear(setting.examples(2_048, 256), setting.device.type).subject


def peaks(sides: dict[str, Callable[[int], object]], setting: Setting) -> tuple[dict[str, float], str]:
    """MiB of each side, and the medians of their seconds in a sentence; both are warmed up."""
    for side in sides.values():
        side(-1)
    found = {name: peak(setting.device, lambda side=side: side(-1)) for name, side in sides.items()}
    runs = interleaved(sides, setting.repeats, setting.device)
    return found, ", ".join(f"{name} {median_seconds(r):.3g} s" for name, r in runs.items())


def activations(setting: Setting) -> Iterator[Row]:
    """Of a Hessian product of one batch."""
    subject = on_cuda(setting)
    batch = next(iter(subject.train))
    risks = {name: dataclasses.replace(subject, shared=Shared(), offload=name == "host").risk
             for name in ("host", "device")}
    vectors = {k: torch.randn_like(w) for k, w in subject.risk.weights.items()}
    found, seconds = peaks({name: lambda _, risk=risk: batch_hessian_product(risk, batch, vectors)
                            for name, risk in risks.items()}, setting)
    yield Row(f"peak memory in MiB of a Hessian product, {subject.name}, {len(batch)} examples, device / host",
              found["host"], found["device"], f"the same numbers; {seconds}", HESSIAN_PRODUCT, HESSIAN_PRODUCT)


def vectors(setting: Setting) -> Iterator[Row]:
    """Of the largest eigenvalues, with the iteration's vectors on either side."""
    subject, passes = on_cuda(setting), {}

    def run(where: str) -> None:
        free = (lambda device: 0 if device.type == "cuda" else 2**40) if where == "host" else memory.free_bytes
        with mock.patch.object(memory, "free_bytes", free):
            frame = gm.measure(dataclasses.replace(subject, shared=Shared()), "hessian-top", k=5,
                               max_products=VECTORS)
        passes[where] = frame["passes"].iloc[0]
    found, seconds = peaks({where: lambda _, where=where: run(where) for where in ("host", "device")}, setting)
    yield Row(f"peak memory in MiB of hessian-top with at most {VECTORS} products, {subject.name}, "
              f"{subject.train.size:,} examples, vectors on device / host", found["host"], found["device"], seconds,
              passes["host"], passes["device"])


if __name__ == "__main__":
    raise SystemExit(main("offload", __doc__.splitlines()[0], {"activations": activations, "vectors": vectors}))
