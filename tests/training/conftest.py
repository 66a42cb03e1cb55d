"""A tiny real problem: 8x8 digits, and a small convolutional net with batch normalisation."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from genmeasure.data.batches import Batches
from genmeasure.training.loop import Settings

torch.set_num_threads(1)


def small_net(dtype=torch.float32, seed=0):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        net = nn.Sequential()
        net.add_module("conv1", nn.Conv2d(1, 8, 3, padding=1))
        net.add_module("bn1", nn.BatchNorm2d(8))
        net.add_module("act1", nn.ReLU())
        net.add_module("conv2", nn.Conv2d(8, 8, 3, stride=2, padding=1))
        net.add_module("bn2", nn.BatchNorm2d(8))
        net.add_module("act2", nn.ReLU())
        net.add_module("flat", nn.Flatten())
        net.add_module("drop", nn.Dropout(0.1))
        net.add_module("head", nn.Linear(128, 10))
    return net.to(dtype)


def digits(begin, end, name, dtype=torch.float32):
    data = load_digits()
    x = torch.tensor(data.images[begin:end] / 16, dtype=dtype).unsqueeze(1)
    return Batches.from_arrays(x, torch.tensor(data.target[begin:end]), name=name)


@pytest.fixture
def net():
    return small_net()


@pytest.fixture(scope="session")
def train():
    return digits(0, 193, "digits-train")


@pytest.fixture(scope="session")
def few():
    return digits(0, 64, "few-digits")


@pytest.fixture(scope="session")
def validation():
    return digits(200, 300, "digits-validation")


@pytest.fixture
def settings():
    return Settings(epochs=2, batch_size=32, learning_rate=3e-3, device="cpu")


@pytest.fixture(scope="session")
def confusion():
    """Symmetric, 10 classes, rate 0.2."""
    return torch.eye(10, dtype=torch.float64) * (1 - 2 / 9) + 0.2 / 9
