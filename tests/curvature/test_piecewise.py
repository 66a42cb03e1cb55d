"""Networks made of linear pieces are known by their operations, and by second derivatives where those are not known."""

import pytest
import torch
from torch import nn

import genmeasure as gm
from genmeasure.curvature import gauss_newton
from genmeasure.curvature.piecewise import Structure, structure
from genmeasure.data.batches import Batches


class Net(nn.Module):
    def __init__(self, between, classes=3):
        super().__init__()
        self.first, self.norm, self.between = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), between
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        x = self.between(self.norm(self.first(x)))
        return self.head(x.mean((2, 3)))


class Gate(nn.Module):
    def forward(self, x):
        return x * x


class Twice(nn.Module):
    """One weight in two places."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.conv(torch.relu(self.conv(x)))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return torch.cat([torch.relu(x + 0.5 * self.conv(x))[:, :2], -x[:, 2:]], 1)


class RunningSum(nn.Module):
    def forward(self, x):
        return torch.cumsum(torch.relu(x), 1)


def subject(between):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, x = Net(between), torch.randn(6, 1, 6, 6)
    return gm.subject(net, net, Batches.from_arrays(x, torch.arange(6) % 3), dtype="float64", device="cpu")


KNOWN = {"relu": nn.ReLU(), "leaky relu": nn.LeakyReLU(0.1), "relu6": nn.ReLU6(), "none": nn.Identity(),
         "max-pooling": nn.MaxPool2d(2), "mean-pooling": nn.AvgPool2d(2), "residual": Residual()}
SMOOTH = {"tanh": nn.Tanh(), "gelu": nn.GELU(), "gate": Gate(), "weight used twice": Twice(),
          "softmax": nn.Softmax(1), "layer norm": nn.LayerNorm([4, 6, 6]), "group norm": nn.GroupNorm(2, 4)}


@pytest.mark.parametrize("name", KNOWN)
def test_known_operations_agree_with_second_derivatives(name, monkeypatch):
    risk = subject(KNOWN[name]).risk
    assert structure(risk).linear
    monkeypatch.setattr(gauss_newton, "structure", lambda _: Structure(linear=False, kinks=True))
    assert all(gauss_newton.linear_layers(risk))


@pytest.mark.parametrize("name", SMOOTH)
def test_what_bends_is_never_taken_for_linear(name):
    risk = subject(SMOOTH[name]).risk
    assert not structure(risk).linear
    assert not all(gauss_newton.linear_layers(risk))


def test_an_unknown_operation_is_left_to_second_derivatives():
    risk = subject(RunningSum()).risk
    assert not structure(risk).linear
    assert gauss_newton.piecewise_linear(risk)
