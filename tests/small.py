"""Tiny networks and data: builders for `small.py:NAME` specifications, and pairs of start and fine-tuned weights."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from genmeasure.checkpoints.build import build
from genmeasure.data.batches import Batches

FILE = str(Path(__file__))
CLASSES = 3


class Residual(nn.Module):
    """ReLU: a convolution, a residual block and a head, BatchNorm behind each convolution."""

    def __init__(self, classes: int):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.block, self.block_norm = nn.Conv2d(4, 4, 3, stride=1, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem_norm(self.stem(x)))
        x = torch.relu(x + self.block_norm(self.block(x)))
        return self.head(x.mean((2, 3)))


class Smooth(nn.Module):
    """tanh: a convolution and two linear layers."""

    def __init__(self):
        super().__init__()
        self.conv, self.hidden, self.head = nn.Conv2d(1, 3, 3, stride=2), nn.Linear(12, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(torch.tanh(self.conv(x)).flatten(1))))


class Keyword(nn.Module):
    """Takes `pixel_values=` and returns a mapping-like output with `.logits`, with a weight that never runs."""

    def __init__(self):
        super().__init__()
        self.inner, self.unused = Residual(CLASSES), nn.Linear(3, 3)

    def forward(self, pixel_values: Tensor) -> object:
        return Output(self.inner(pixel_values))


class Output:
    def __init__(self, logits: Tensor):
        self.logits = logits


def residual(classes: int = CLASSES) -> nn.Module:
    return Residual(classes)


def smooth() -> nn.Module:
    return Smooth()


def chain() -> nn.Module:
    """A plain ReLU chain without biases: homogeneous, as the theorems for feed-forward networks ask."""
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8, bias=False), nn.ReLU(), nn.Linear(8, 6, bias=False), nn.ReLU(),
                         nn.Linear(6, CLASSES, bias=False))


def keyword() -> nn.Module:
    """Dict batches, a frozen layer and an unused one."""
    model = Keyword()
    model.inner.stem.requires_grad_(False)
    return model


def pair(name: str, *, move: float = 0.1, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """A start with lived-in BatchNorm statistics and the same network moved by noise of `move`, in training mode."""
    start = build(f"{FILE}:{name}", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in start.state_dict().items():
        if key.endswith("running_mean"):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
        if key.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    end = copy.deepcopy(start)
    with torch.no_grad():
        for parameter in end.parameters():
            parameter += move * torch.randn(parameter.shape, generator=generator)
    return start.train(), end.train()


def images(n: int = 32, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x [n, 1, 6, 6] and y [n] at random."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 6, 6, generator=generator), torch.randint(CLASSES, (n,), generator=generator)


def batches(n: int = 32, *, seed: int = 0, batch_size: int = 16, key: str | None = None) -> Batches:
    """`images` in batches; key: as mappings that hold the inputs under this name."""
    x, y = images(n, seed=seed)
    if key is None:
        return Batches.from_arrays(x, y, batch_size=batch_size, name=f"seed {seed}")
    rows = range(0, n, batch_size)
    return Batches([{key: x[i:i + batch_size], "labels": y[i:i + batch_size]} for i in rows], f"seed {seed}")
