"""The networks that are measured, each with its data, as subjects."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import genmeasure as gm
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

EXAMPLES_SEED = 0


@dataclass(frozen=True)
class Case:
    """A subject, and the same with its first batch only, to warm up on."""

    subject: Subject
    few: Subject

    @property
    def label(self) -> str:
        return f"{self.subject.name}, {self.subject.train.size:,} examples"


def make_case(name: str, model: nn.Module, x: Tensor, y: Tensor, examples: int, batch_size: int, device: str) -> Case:
    """The model on `examples` rows of x and y drawn without replacement; the model itself serves as its start."""
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(EXAMPLES_SEED))[:examples]
    def subject(rows: Tensor) -> Subject:
        return gm.subject(model, model, Batches.from_arrays(x[rows], y[rows], batch_size=batch_size), name=name,
                          device=device)
    return Case(subject(rows), subject(rows[:batch_size]))


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


def resnet20(examples: int, batch_size: int, device: str) -> Case:
    """ResNet-20 with its CIFAR-10 weights on CIFAR-10 training images; `InputError` where the files are absent."""
    row = manifest.entry("aka_resnet20")
    mean, std = (re.search(rf"{key} ([\d. ]+\d)", row["notes"]).group(1).replace(" ", ",") for key in ("mean", "std"))
    images = load(f"cifar10_train10k?mean={mean}&std={std}", batch_size=10_000)
    (batch,) = images
    model = ResNet20()
    match(model, read(manifest.verify("aka_resnet20")).tensors)
    return make_case("ResNet-20", model, batch.inputs[0], batch.targets, examples, batch_size, device)


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


def trained_on_digits(name: str, build: Callable[[], nn.Module], examples: int, batch_size: int, device: str) -> Case:
    """The network after a short training on the digits 5-9, on its training images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
    train = digits()["train"]
    data = Batches.from_arrays(train["x"], train["y"])
    settings = Settings(epochs=15, learning_rate=3e-3, schedule="cosine", device="cpu")
    trained = fine_tune(model, "plain", data, settings=settings, head="head").model
    return make_case(name, trained, train["x"], train["y"], examples, batch_size, device)


def piecewise_linear(examples: int, batch_size: int, device: str) -> tuple[Case, str]:
    """ResNet-20, or where its files are absent a small ReLU network on digits and the reason."""
    try:
        return resnet20(examples, batch_size, device), ""
    except InputError as error:
        case = trained_on_digits("ReLU digits network", rectified_digit_network, examples, batch_size, device)
        return case, str(error)
