"""The embedded study: handwritten digits, pretrained on 0-4, fine-tuned on 5-9 in many ways, read back and audited."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from genmeasure.checkpoints.build import build
from genmeasure.checkpoints.write import write
from genmeasure.data.readers import load
from genmeasure.engine import Engine
from genmeasure.errors import InputError
from genmeasure.fine_tuned import FineTuned, make, recipe_of
from genmeasure.registry import algorithm
from genmeasure.subject import SubjectFiles, source_of
from genmeasure.training.loop import Settings, fine_tune

MODEL, DATA = "genmeasure.demo:digit_network", "digits-5-9"
EXAMPLES, FLOPS = 448, 7.56e5
"""Training images, and operations of a forward pass on one."""
NOISES = (0.0, 0.2, 0.4)
METHODS: Mapping[str, Mapping[str, Any]] = {
    "plain": {}, "early-stopping": {"patience": 8}, "label-smoothing": {}, "mixup": {}, "l2-sp": {"weight": 0.002},
    "layer-ball": {"radius": 1.5}, "noise-injection": {"sigma": 0.05}, "consistent-loss": {}}
PRETRAINING = Settings(epochs=15, learning_rate=3e-3, schedule="cosine", device="cpu")
FINE_TUNING = Settings(epochs=40, learning_rate=3e-3, schedule="cosine", device="cpu")


class DigitNetwork(nn.Module):
    """A convolution, a residual block, a strided convolution and a linear head; BatchNorm behind each convolution.

    [batch, 1, 8, 8] -> [batch, classes]. GELU is smooth, as the theorem of Ju, Li & Zhang (2022) asks.
    """

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.block1, self.block1_norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.block2, self.block2_norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.down, self.down_norm = (nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
                                     nn.BatchNorm2d(2 * width))
        self.activation = nn.GELU()
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.stem_norm(self.stem(x)))
        inner = self.activation(self.block1_norm(self.block1(x)))
        x = self.activation(x + self.block2_norm(self.block2(inner)))
        x = self.activation(self.down_norm(self.down(x)))
        return self.head(x.mean((2, 3)))


def digit_network(classes: int = 5, width: int = 16) -> DigitNetwork:
    """The demo's network; pass `genmeasure.demo:digit_network` as the model of its checkpoints."""
    return DigitNetwork(classes, width)


def checkpoint(folder: Path, variant: str, method: str, parameters: Mapping[str, Any], noise: float | str, seed: int, *,
               kind: str = "", **settings: Any) -> FineTuned:
    """One checkpoint of digits 5-9; the seed draws start, wrong labels and order.

    variant: the name that the method goes by. noise: what the readings say of it, and the rate of symmetric noise
    unless `kind` is another one's specification. settings: that differ from `FINE_TUNING`.
    """
    if not kind and isinstance(noise, str):
        raise InputError(f"noise={noise!r} came without its specification; give it as kind='{noise}:key=value'")
    kind = kind or f"symmetric:rate={noise},seed={seed}"
    end, start = (checkpoint_path(folder, seed, name) for name in (f"{variant}-noise-{noise}", "start"))
    return FineTuned(
        f"{variant}-noise-{noise}-seed-{seed}", end, MODEL, str(start), f"{DATA}?noise={kind}#train",
        f"{DATA}#validation", f"{DATA}#test", method, parameters, replace(FINE_TUNING, seed=seed, **settings),
        (("method", variant), ("dataset", "digits"), ("noise", noise), ("seed", seed)), head="head", examples=EXAMPLES,
        flops=FLOPS)


def checkpoint_path(folder: Path, seed: int, name: str) -> Path:
    """Where a checkpoint goes."""
    return folder / "checkpoints" / f"seed-{seed}" / f"{name}.safetensors"


def write_starts(folder: Path, seeds: Sequence[int]) -> None:
    """The start that all checkpoints of a seed share: pretrained on digits 0-4, with a fresh head."""
    for seed in seeds:
        settings, end = replace(PRETRAINING, seed=seed), checkpoint_path(folder, seed, "start")
        model = build(MODEL, seed=seed)
        code = [algorithm["plain"].source_hash(), *source_of(model)]
        recipe = json.dumps({"settings": asdict(settings), "code": code}, sort_keys=True)
        if recipe_of(end) == recipe:
            continue
        state = fine_tune(model, "plain", load("digits-0-4#train"), settings=settings, head="head").model.state_dict()
        fresh = build(MODEL, seed=seed + 1000).state_dict()
        state |= {name: tensor for name, tensor in fresh.items() if name.startswith("head.")}
        end.parent.mkdir(parents=True, exist_ok=True)
        write(end, state, {"recipe": recipe, "model": MODEL, "seed": str(seed), "pretrained on": "digits 0-4"})


def plan(folder: Path, seeds: int) -> list[FineTuned]:
    """Every checkpoint: methods x label noise x seeds; the consistent loss needs label noise."""
    return [checkpoint(folder, method, method, parameters, noise, seed)
            for seed in range(seeds) for noise in NOISES for method, parameters in METHODS.items()
            if noise > 0 or method != "consistent-loss"]


def make_checkpoints(folder: Path, *, seeds: int, device: str, engine: Engine | None = None) -> list[SubjectFiles]:
    """Write starts and fine-tuned checkpoints where they are missing; returns the subjects to audit."""
    write_starts(folder, range(seeds))
    return make(plan(folder, seeds), device=device, engine=engine)
