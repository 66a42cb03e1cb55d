"""The networks that are measured, each with its data, as subjects."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from harness import Skipped, say
from torch import Tensor, nn

import genmeasure as gm
from genmeasure.checkpoints.build import build
from genmeasure.checkpoints.match import match
from genmeasure.checkpoints.read import read
from genmeasure.data import manifest
from genmeasure.data.batches import Batches
from genmeasure.data.digits import digits
from genmeasure.data.readers import load
from genmeasure.demo import digit_network
from genmeasure.errors import InputError
from genmeasure.subject import Subject
from genmeasure.training.loop import Settings, fine_tune

EXAMPLES_SEED, START_SEED = 0, 1
MOVED = 0.1
"""Relative distance of every weight matrix from the start that is made up where there is none."""


@dataclass(frozen=True)
class Case:
    """A subject, and the same with its first batch only, to warm up on."""

    subject: Subject
    few: Subject

    @property
    def label(self) -> str:
        return f"{self.subject.name}, {self.subject.train.size:,} examples"

    def first(self, examples: int) -> Subject:
        """The same subject with its first examples only."""
        train = self.subject.train
        return on(self.subject, train.gather(torch.arange(min(examples, train.size))))


def on(subject: Subject, batches: list) -> Subject:
    """The same model with other data."""
    return gm.subject(subject.model, subject.start, Batches(batches), name=subject.name, head=subject.head,
                      device=str(next(subject.model.parameters()).device))


def batch_size(device: str) -> int:
    return 64 if device == "cpu" else 256


def make_case(name: str, model: nn.Module, x: Tensor, y: Tensor, examples: int, device: str,
              start: nn.Module | None = None, batch: int | None = None) -> Case:
    """The model on `examples` rows of x and y drawn without replacement, in batches of `batch`.

    start: the pretrained one, if there is.
    """
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(EXAMPLES_SEED))[:examples]
    data = Batches.from_arrays(x[rows], y[rows], batch_size=batch or batch_size(device))
    subject = gm.subject(model, start or displaced(model), data, name=name, device=device)
    return Case(subject, on(subject, [next(iter(data))]))


@torch.no_grad()
def displaced(model: nn.Module) -> nn.Module:
    """A start for a model that has none: every weight matrix moved by `MOVED` of its norm in a random direction."""
    start, generator = copy.deepcopy(model), torch.Generator().manual_seed(START_SEED)
    for weight in start.parameters():
        if weight.ndim > 1:
            move = torch.randn(weight.shape, generator=generator).to(weight)
            weight += MOVED * weight.norm() / move.norm() * move
    return start


class Block(nn.Module):
    """Residual block whose shortcut drops positions and pads channels with zeros (option A of He et al. 2016)."""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.stride, self.padding = stride, (width - width_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.padding:
            x = F.pad(x[:, :, ::self.stride, ::self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(inner + x)


class ResNet20(nn.Module):
    """He et al. 2016, arXiv:1512.03385, section 4.2, under the names of `aka_resnet20`."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


def resnet20(examples: int, device: str) -> Case:
    """ResNet-20 with its CIFAR-10 weights on CIFAR-10 training images; `InputError` where the files are absent."""
    row = manifest.entry("aka_resnet20")
    images = load(f"cifar10_train10k?{normalisation(row['notes'])}", batch_size=10_000)
    (batch,) = images
    model = ResNet20()
    match(model, read(manifest.verify("aka_resnet20")).tensors)
    return make_case("ResNet-20", model, batch.inputs[0], batch.targets, examples, device)


def vision_transformer(examples: int, device: str) -> Case:
    """The manifest's ViT of 6 layers with its CIFAR-10 weights on CIFAR-10 training images; raises `Skipped`."""
    try:
        file, row = manifest.verify("smmk_vit_cifar10"), manifest.entry("smmk_vit_cifar10")
        images = load(f"cifar10_train10k?{normalisation(row['notes'])}", batch_size=10_000)
    except InputError as error:
        raise Skipped(str(error)) from error
    (batch,) = images
    model = build(f"{file.parents[1] / 'archs.py'}:load_checkpoint?path_or_file={file}&arch=cifar-vit")
    return make_case("ViT", model, batch.inputs[0], batch.targets, examples, device)


def normalisation(notes: str) -> str:
    """Mean and standard deviation that a checkpoint's notes in the manifest state, as the reader takes them."""
    return "&".join(f"{key}=" + re.search(rf"{key} ([\d. ]+\d)", notes).group(1).replace(" ", ",")
                    for key in ("mean", "std"))


class RowTransformer(nn.Module):
    """Two pre-norm encoder layers with GELU over the rows of an 8 x 8 image."""

    def __init__(self, classes: int = 5, width: int = 32):
        super().__init__()
        self.embed, self.position = nn.Linear(8, width), nn.Parameter(torch.randn(8, width) * 0.1)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x.squeeze(1)) + self.position).mean(1))


def rectified_digit_network() -> nn.Module:
    """The demo's network with ReLU, so that it is piecewise linear in each weight tensor."""
    model = digit_network()
    model.activation = nn.ReLU()
    return model


def trained_on_digits(name: str, build: Callable[[], nn.Module], examples: int, device: str) -> Case:
    """The network after a short training on the digits 5-9, on its training images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
    train = digits()["train"]
    data = Batches.from_arrays(train["x"], train["y"], batch_size=len(train["x"]))
    settings = Settings(epochs=15, learning_rate=3e-3, schedule="cosine", device="cpu")
    trained = fine_tune(model, "plain", data, settings=settings, head="head").model
    return make_case(name, trained, train["x"], train["y"], examples, device)


@functools.lru_cache(maxsize=4)
def piecewise_linear(examples: int, device: str) -> Case:
    """ResNet-20, or where its files are absent a small ReLU network on digits; the reason is printed."""
    try:
        return resnet20(examples, device)
    except InputError as error:
        say(f"  ResNet-20 is left out and a small network on digits taken instead: {error}")
        return trained_on_digits("ReLU digits network", rectified_digit_network, examples, device)


@functools.lru_cache(maxsize=1)
def smooth(examples: int, device: str) -> tuple[Case, Case]:
    """Two small smooth networks on digits."""
    return (trained_on_digits("GELU digits network", digit_network, examples, device),
            trained_on_digits("transformer on digits", RowTransformer, examples, device))
