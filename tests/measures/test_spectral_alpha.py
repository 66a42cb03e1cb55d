"""Power laws in spectra, against samples and matrices whose exponents are known in closed form."""

import copy
import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

import genmeasure as gm
from genmeasure.data.batches import Batches
from genmeasure.measures.spectral_alpha import power_law


def quantiles(alpha: float, n: int, x_min: float = 1.0) -> torch.Tensor:
    """The n midpoint quantiles of the density x^-alpha above x_min, ascending."""
    p = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return x_min * (1 - p) ** (-1 / (alpha - 1))


def subject_of(net: nn.Module, x: torch.Tensor) -> gm.Subject:
    return gm.subject(net, copy.deepcopy(net), Batches.from_arrays(x, torch.zeros(len(x), dtype=torch.int64)),
                      dtype="float64", device="cpu")


def rows(subject: gm.Subject):
    return gm.measure(subject, "spectral-alpha").set_index(["layer", "term"])["value"]


@pytest.mark.parametrize("alpha", [1.8, 2.5, 4.0])
def test_the_exponent_of_exact_quantiles(alpha):
    found, start, n = power_law(quantiles(alpha, 400, 0.3))
    assert found == pytest.approx(alpha, rel=0.02)
    assert n >= 380
    assert start == pytest.approx(0.3, rel=0.1)


def test_a_tail_above_a_body_that_is_no_power_law():
    tail, body = quantiles(2.2, 200, 1.0), torch.linspace(0.5, 0.999, 200, dtype=torch.float64)
    found, start, n = power_law(torch.cat([body, tail]))
    assert start == pytest.approx(1.0, rel=0.15)
    assert found == pytest.approx(2.2, rel=0.05)
    assert 150 < n <= 210


def test_likelihood_and_distance_at_the_chosen_start():
    """The maximum-likelihood fit is scipy's, and no other start has a smaller Kolmogorov-Smirnov distance."""
    values = torch.from_numpy(np.sort(np.random.default_rng(0).lognormal(size=60)))
    found, start, n = power_law(values)
    tail = values[-n:].numpy()
    assert start == tail[0]
    shape, _, _ = scipy.stats.pareto.fit(tail, floc=0, fscale=start)
    assert found == pytest.approx(1 + shape, rel=1e-3)
    exact = 1 + n / np.log(tail / start).sum()
    assert found == pytest.approx(exact, rel=1e-12)

    def distance(part):
        slope = len(part) / np.log(part / part[0]).sum()
        return scipy.stats.kstest(part, scipy.stats.pareto(slope, scale=part[0]).cdf).statistic
    assert distance(tail) == pytest.approx(min(distance(values[i:].numpy()) for i in range(51)), rel=1e-9)


def test_terms_of_known_matrices():
    """A diagonal layer with known eigenvalues, a convolution taken apart by place, and a layer too small for a fit."""
    known = quantiles(3.0, 50, 2.0)
    net = nn.Sequential(nn.Conv2d(2, 2, (1, 25)), nn.Flatten(), nn.Linear(50, 50, bias=False), nn.Linear(50, 3))
    net = net.double()
    net[2].weight.data = known.sqrt().diag()
    kernel = torch.zeros(2, 2, 1, 25, dtype=torch.float64)
    kernel[0, 0, 0] = kernel[1, 1, 0] = known[::2].sqrt()
    net[0].weight.data = kernel
    found = rows(subject_of(net, torch.randn(4, 2, 1, 49, dtype=torch.float64)))
    alpha, top = power_law(known)[0], known[-1].item()
    assert found["2", "alpha"] == pytest.approx(alpha, rel=1e-9)
    assert found["2", "log10-spectral-norm"] == pytest.approx(math.log10(top))
    assert found["2", "weighted-alpha"] == pytest.approx(alpha * math.log10(top))
    assert found["2", "stable-rank"] == pytest.approx(known.sum().item() / top)
    pooled = known[::2].repeat_interleave(2)
    assert found["0", "stable-rank"] == pytest.approx((pooled.sum() / pooled[-1]).item())
    assert found["0", "alpha"] == pytest.approx(power_law(pooled)[0], rel=1e-9)
    assert ("3", "alpha") not in found.index
    assert found["total", "alpha"] == pytest.approx((found["0", "alpha"] + found["2", "alpha"]) / 2)
    layers = [found[layer, "stable-rank"] for layer in ("0", "2", "3")]
    assert found["total", "stable-rank"] == pytest.approx(sum(layers) / 3)


def test_equal_eigenvalues_and_zeros_have_no_exponent():
    net = nn.Sequential(nn.Linear(20, 20, bias=False), nn.Linear(20, 3, bias=False)).double()
    net[0].weight.data = torch.eye(20, dtype=torch.float64) * 2
    net[1].weight.data.zero_()
    found = rows(subject_of(net, torch.randn(4, 20, dtype=torch.float64)))
    assert ("0", "alpha") not in found.index
    assert found["0", "stable-rank"] == pytest.approx(20)
    assert not [layer for layer, _ in found.index if layer == "1"]
