"""Over many seeds, (estimate - truth) / stderr has mean 0 and spread 1; the truth is a dense Hessian in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from genmeasure.curvature.noise import noise_curve
from genmeasure.curvature.products import hessian_product
from genmeasure.curvature.trace import block_traces
from genmeasure.data.batches import Batches
from genmeasure.losses import Loss
from genmeasure.subject import subject

SEEDS, PASSES = 200, 40
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smooth():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        x, y = torch.randn(16, 4).double(), torch.randint(0, 3, (16,))
    return subject(net, net, Batches.from_arrays(x, y, batch_size=4), dtype="float64", device="cpu")


def dense_traces(s):
    """Tr H_ii by one product per coordinate."""
    result = []
    for layer in s.layers:
        w = s.weight(layer)
        units = torch.eye(w.numel(), dtype=w.dtype).reshape(-1, *w.shape)
        result.append(sum(hessian_product(s.risk, {layer.name: u})[layer.name].flatten() @ u.flatten() for u in units))
    return torch.stack(result)


def check(z):
    z = np.asarray(z)
    assert (np.abs(z.mean(0)) < 3.3 / np.sqrt(SEEDS)).all()
    assert (z.std(0) > 0.85).all()
    assert (z.std(0) < 1.15).all()
    covered = (np.abs(z) < 1.96).mean(0)
    assert (covered >= 0.92).all()
    assert (covered <= 0.985).all()


@pytest.mark.parametrize("route", ["split", "hutchinson"])
def test_traces(smooth, route):
    truth = dense_traces(smooth)
    z, sampled = [], slice(1 if route == "split" else 2)  # the head of a split trace is exact
    for seed in range(SEEDS):
        found = block_traces(smooth.risk, route=route, rtol=0, layer_rtol=0, atol=0, max_passes=PASSES, seed=seed)
        total = found.estimate()
        each = ((found.value - truth) / found.covariance.diagonal().sqrt())[sampled]
        z.append([*each.tolist(), (total.value - truth.sum().item()) / total.stderr])
    check(z)


def half_square(outputs, targets):
    return 0.5 * outputs[:, 0] ** 2


def test_noise_stability_of_a_quadratic():
    x = torch.randn(48, 5, generator=torch.Generator().manual_seed(0)).double()
    net = nn.Linear(5, 1, bias=False).double()
    s = subject(net, net, Batches.from_arrays(x, torch.zeros(48), batch_size=12), dtype="float64", device="cpu",
                loss=Loss("half square", half_square, classification=False))
    trace = x.square().sum(1).mean().item()
    for one_sided in (False, True):
        z = []
        for seed in range(SEEDS):
            found = noise_curve(s.risk, (0.01, 1.0), one_sided=one_sided, rtol=0, atol=0, max_passes=PASSES, seed=seed)
            truth = torch.tensor([0.01**2, 1.0]) / 2 * trace
            z.append(((found.value - truth) / found.stderr).tolist())
        check(z)
