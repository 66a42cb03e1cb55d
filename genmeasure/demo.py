"""The embedded study: handwritten digits, pretrained on 0-4, fine-tuned on 5-9 in many ways, read back and audited."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genmeasure.checkpoints.build import build
from genmeasure.checkpoints.match import fingerprint, match
from genmeasure.checkpoints.read import read
from genmeasure.checkpoints.write import write
from genmeasure.data.batches import Batches
from genmeasure.data.digits import digits
from genmeasure.data.label_noise.symmetric import symmetric
from genmeasure.engine import Engine, LocalEngine
from genmeasure.fine_tuned import carry_out, recipe_of
from genmeasure.registry import algorithm
from genmeasure.subject import SubjectFiles
from genmeasure.training.algorithm import get_algorithm
from genmeasure.training.loop import Settings, fine_tune

MODEL = "genmeasure.demo:digit_network"
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


@dataclass(frozen=True)
class Run:
    """One fine-tuned checkpoint of digits 5-9: what makes it and where it goes.

    method: a registered algorithm. parameters: of it. variant: the name it goes by where one algorithm comes with
    several parameters or settings; empty for the method's own.
    """

    folder: Path
    method: str
    noise: float
    seed: int
    settings: Settings = FINE_TUNING
    parameters: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""

    @property
    def label(self) -> str:
        return self.variant or self.method

    @property
    def name(self) -> str:
        return f"{self.label}-noise-{self.noise}-seed-{self.seed}"

    @property
    def start(self) -> Path:
        return self.folder / "checkpoints" / f"seed-{self.seed}" / "start.safetensors"

    @property
    def end(self) -> Path:
        return self.start.with_name(f"{self.label}-noise-{self.noise}.safetensors")

    @property
    def data(self) -> Path:
        return self.folder / "data" / f"noise-{self.noise}-seed-{self.seed}.npz"

    def files(self, device: str) -> SubjectFiles:
        """The checkpoint on disk as a subject to audit."""
        return SubjectFiles(self.name, MODEL, str(self.start), str(self.end), f"{self.data}#train", f"{self.data}#test",
                            device=device, labels=(("method", self.label), ("noise", self.noise), ("seed", self.seed)))

    def __call__(self) -> str:
        """Fine-tune and write the checkpoint, unless one made in the same way is there."""
        arrays = np.load(self.data, allow_pickle=False)
        started = read(self.start)
        train = Batches.from_arrays(arrays["x_train"], arrays["y_train"], name="train")
        recipe = json.dumps({"start": fingerprint(started.tensors), "data": train.fingerprint, "method": self.method,
                             "parameters": dict(self.parameters), "settings": asdict(self.settings),
                             "code": _code(self.method)}, sort_keys=True)
        if recipe_of(self.end) == recipe:
            return self.name
        model = build(MODEL)
        match(model, started.tensors)
        validation = Batches.from_arrays(arrays["x_validation"], arrays["y_validation"], name="validation")
        confusion = torch.from_numpy(arrays["confusion"])
        result = fine_tune(model, get_algorithm(self.method, **self.parameters), train, validation,
                           settings=self.settings, head="head", confusion=confusion)
        history = [{"epoch": e.number, "training_loss": e.training_loss, "validation_loss": e.validation_loss,
                    "validation_error": e.validation_error} for e in result.history]
        write(self.end, result.model.state_dict(), {
            "recipe": recipe, "method": self.method, "noise": str(self.noise), "seed": str(self.seed), "model": MODEL,
            "chosen_epoch": str(result.chosen), "history": json.dumps(history),
            "report": json.dumps({place: piece.report() for place, piece in result.algorithm.pieces().items()})})
        return self.name


def _code(method: str) -> list[str]:
    return [algorithm[method].source_hash(), inspect.getsource(DigitNetwork)]


def plan(folder: Path, seeds: int) -> list[Run]:
    """Every checkpoint: methods x label noise x seeds; the consistent loss needs label noise."""
    return [Run(folder, method, noise, seed, Settings(**{**asdict(FINE_TUNING), "seed": seed}), parameters)
            for seed in range(seeds) for noise in NOISES for method, parameters in METHODS.items()
            if noise > 0 or method != "consistent-loss"]


def write_data(run: Run) -> None:
    """The splits of digits 5-9, their rows in scikit-learn's set, with this run's noise in the training labels."""
    if run.data.exists():
        return
    splits = digits(classes=(5, 6, 7, 8, 9), seed=0)
    noisy = symmetric(splits["train"]["y"], 5, rate=run.noise, seed=run.seed)
    arrays = {f"{part}_{split}": tensor.numpy() for split, parts in splits.items() for part, tensor in parts.items()}
    arrays |= {"y_train": noisy.labels.numpy(), "clean_train": noisy.clean.numpy(),
               "confusion": noisy.confusion.numpy()}
    run.data.parent.mkdir(parents=True, exist_ok=True)
    temporary = run.data.with_suffix(".part.npz")
    np.savez_compressed(temporary, **arrays)
    temporary.replace(run.data)


def write_start(run: Run) -> None:
    """The start that all checkpoints of a seed share: pretrained on digits 0-4, with a fresh head."""
    settings = Settings(**{**asdict(PRETRAINING), "seed": run.seed})
    recipe = json.dumps({"settings": asdict(settings), "code": _code("plain")}, sort_keys=True)
    if recipe_of(run.start) == recipe:
        return
    train = digits(classes=(0, 1, 2, 3, 4), seed=0)["train"]
    model = build(MODEL, seed=run.seed)
    pretrained = fine_tune(model, "plain", Batches.from_arrays(train["x"], train["y"], name="digits 0-4"),
                           settings=settings, head="head").model
    state = pretrained.state_dict()
    fresh = build(MODEL, seed=run.seed + 1000).state_dict()
    state |= {name: tensor for name, tensor in fresh.items() if name.startswith("head.")}
    run.start.parent.mkdir(parents=True, exist_ok=True)
    write(run.start, state, {"recipe": recipe, "model": MODEL, "seed": str(run.seed), "pretrained on": "digits 0-4"})


def make_checkpoints(folder: Path, *, seeds: int, device: str, engine: Engine | None = None) -> list[SubjectFiles]:
    """Write data, starts and fine-tuned checkpoints where they are missing; returns the subjects to audit."""
    return make(plan(folder, seeds), device=device, engine=engine)


def make(runs: Sequence[Run], *, device: str = "cpu", engine: Engine | None = None) -> list[SubjectFiles]:
    """The same for runs of one's own."""
    for run in runs:
        write_data(run)
    for run in {run.start: run for run in runs}.values():
        write_start(run)
    for _ in (engine or LocalEngine()).map(carry_out, runs, "fine-tune"):
        pass
    return [run.files(device) for run in runs]
