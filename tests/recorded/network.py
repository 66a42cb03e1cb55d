"""A small float64 network and its data, the same on every machine and version: all numbers from numpy's RandomState."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}
"""A smooth network, and one that is piecewise linear in each weight tensor."""
BATCHES = (5, 5, 3)
"""The last batch is short, so that a mean of batch means would show."""


def network(activation: str, seed: int = 0) -> nn.Sequential:
    """A convolution and two linear layers, [batch, 1, 6, 6] -> [batch, 4]."""
    act = ACTIVATIONS[activation]
    model = nn.Sequential(nn.Conv2d(1, 3, 3, stride=2), act(), nn.Flatten(), nn.Linear(12, 6), act(), nn.Linear(6, 4))
    model = model.double().eval()
    draws = np.random.RandomState(seed)
    for parameter in model.parameters():
        fan_in = parameter[0].numel()
        parameter.data = torch.from_numpy(draws.standard_normal(tuple(parameter.shape)) * (1.5 / fan_in**0.5))
    return model


def batches(seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    draws = np.random.RandomState(seed)
    return [(torch.from_numpy(draws.standard_normal((n, 1, 6, 6))), torch.from_numpy(draws.randint(0, 4, n)))
            for n in BATCHES]


def weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is measured, by layer: weights of the convolution and the linear layers, without biases."""
    return {name.removesuffix(".weight"): p for name, p in model.named_parameters() if name.endswith(".weight")}
