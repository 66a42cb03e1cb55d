"""Sharpness in closed form, on half the square of a linear map."""

import math

import pytest
import torch
from torch import nn

import genmeasure as gm
from genmeasure.curvature.ascent import worst_case
from genmeasure.curvature.noise import Curve
from genmeasure.data.batches import Batches
from genmeasure.errors import InputError
from genmeasure.losses import Loss
from genmeasure.measures.sharpness import tolerated
from genmeasure.subject import subject

A = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)


def squared(weight):
    """L(W) = sum of half the squares of the rows of a root of A times w, a mean over two examples: w'Aw / 4."""
    root = torch.linalg.cholesky(A).T
    net = nn.Linear(2, 1, bias=False).double()
    net.weight.data = torch.tensor([weight], dtype=torch.float64)
    return subject(net, net, Batches.from_arrays(root, torch.zeros(2, 1).double(), batch_size=2), loss="squared",
                   dtype="float64", device="cpu")


def test_one_step_and_ascent_of_a_quadratic():
    """From w, the step goes along Aw; in a large ball the ascent ends along the top eigenvector."""
    w = torch.tensor([0.3, -0.1]).double()
    s = squared(w.tolist())

    def loss(v):
        return (v @ A @ v / 4).item()
    up = w + 0.5 * (A @ w) / (A @ w).norm()
    one, best = worst_case(s.risk, {"": 1.0}, 0.5, 60)
    assert one == pytest.approx(loss(up) - loss(w), rel=1e-10)
    angles = torch.linspace(0, 2 * math.pi, 100001, dtype=torch.float64)
    around = w + 0.5 * torch.stack([angles.cos(), angles.sin()], 1)
    truth = ((around @ A) * around).sum(1).max().item() / 4 - loss(w)
    assert one < best <= truth * (1 + 1e-9)
    assert best == pytest.approx(truth, rel=1e-4)


def test_adaptive_ascent_is_in_units_of_the_weights():
    """ASAM: w + rho |w|^2 g / norm of |w| g; a weight of zero stays."""
    w = torch.tensor([0.3, 0.0], dtype=torch.float64)
    s = squared(w.tolist())
    one, best = worst_case(s.risk, {"": w.abs()[None]}, 0.5, 5)
    up = 1.5 * w
    assert one == pytest.approx((up @ A @ up - w @ A @ w).item() / 4, rel=1e-10)
    assert best == pytest.approx(one, rel=1e-10)


def test_at_a_stationary_point_no_step_is_taken():
    assert worst_case(squared([0.0, 0.0]).risk, {"": 1.0}, 0.5, 3) == (0.0, 0.0)


def test_the_reading_holds_averages_and_sigmas():
    """I(sigma) = sigma^2/2 Tr(A)/2, and with noise relative to the weights sigma^2/2 sum of A_ii w_i^2 / 2."""
    frame = gm.measure(squared([0.3, -0.1]), "sharpness", rho=0.4, adaptive_rho=0.7, increase=0.2, rtol=0.03,
                       max_passes=4000).set_index("term")
    relative = (2 * 0.3**2 + 3 * 0.1**2) / 2
    truth = {"average": 0.4**2 / 2 / 2 * 2.5, "sigma": math.sqrt(2 * 0.2 / 2.5),
             "adaptive-average": 0.7**2 / 2 / 2 * relative, "adaptive-sigma": math.sqrt(2 * 0.2 / relative)}
    for term, value in truth.items():
        found = frame.loc[term]
        assert 0 < found["stderr"] < 0.04 * value
        assert abs(found["value"] - value) < 4 * found["stderr"], term
    assert frame.loc["sigma", "unit"] == "weight"
    assert frame.loc["one-step", "stderr"] == 0


def saturating(outputs, targets):
    return 0.05 * torch.tanh(outputs[:, 0].square())


def test_a_loss_that_never_rises_so_far_has_no_sigma():
    net = nn.Linear(2, 1).double()
    x = torch.ones(4, 2).double()
    s = subject(net, net, Batches.from_arrays(x, torch.zeros(4)), dtype="float64", device="cpu",
                loss=Loss("saturating", saturating, upper=0.05, classification=False))
    frame = gm.measure(s, "sharpness", steps=1, max_passes=100)
    assert not {"sigma", "adaptive-sigma"} & set(frame["term"])
    assert "average" in set(frame["term"])


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("truth", [3e-6, 2e-3, 70.0])
def test_the_search_finds_where_a_power_crosses(power, truth):
    """A curve without noise: its crossing is exact, from either side of where the search starts."""
    def drawn(*sigmas, precision=0.0):
        return Curve(torch.tensor([[0.1 * (s / truth) ** power for s in sigmas]] * 3, dtype=torch.float64))
    found = tolerated(drawn, 0.1)
    assert found.value == pytest.approx(truth, rel=1e-9)
    assert found.stderr == pytest.approx(0, abs=1e-12 * truth)


def test_numbers_must_be_above_zero():
    with pytest.raises(InputError, match="give numbers above zero$"):
        gm.measure(squared([1.0, 1.0]), "sharpness", rho=0.0)
