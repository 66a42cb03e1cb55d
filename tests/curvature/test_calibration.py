"""Over many seeds, (estimate - truth) / stderr has mean 0 and spread 1; the truth is a dense Hessian in float64."""

import pytest
import torch
from dense import TANH, Dense, assert_calibrated, make
from torch import nn

from genmeasure.curvature.products import hessian_product
from genmeasure.curvature.trace import block_traces
from genmeasure.data.batches import Batches
from genmeasure.subject import subject

SEEDS, PASSES = 400, 40
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


def z_scores(found, truth, sampled):
    total = found.estimate()
    each = ((found.value - truth) / found.covariance.diagonal().sqrt())[sampled]
    return [*each.tolist(), (total.value - truth.sum().item()) / total.stderr]


def test_hutchinson_traces(smooth):
    truth, z = dense_traces(smooth), []
    for seed in range(SEEDS):
        found = block_traces(smooth.risk, route="hutchinson", rtol=0, layer_rtol=0, atol=0, max_passes=PASSES,
                             seed=seed)
        z.append(z_scores(found, truth, slice(2)))
    assert_calibrated(z)


@pytest.fixture(scope="module")
def convolutional():
    """A convolution, a residual one behind BatchNorm and a head, 60 examples; the outputs are linear in the head."""
    s = make(TANH, batch_size=16, examples=60)
    dense = Dense(s)
    hessian = dense.hessian()
    return s, torch.stack([hessian[r, r].trace() for r in dense.rows])


@pytest.mark.parametrize("atol", [0.6, 0.3])
def test_split_traces(convolutional, atol):
    """Stops by its own rule, after the first stages or several more."""
    s, truth = convolutional
    z = []
    for seed in range(SEEDS):
        found = block_traces(s.risk, route="split", rtol=0, layer_rtol=0, atol=atol, max_passes=60, seed=seed)
        z.append(z_scores(found, truth, slice(2)))
    assert_calibrated(z)


@pytest.mark.parametrize("eigen", [0, 32], ids=["classes", "eigenvectors"])
def test_gauss_newton_traces_from_a_sample_of_pairs(eigen, monkeypatch):
    monkeypatch.setattr("genmeasure.curvature.survey.EIGEN_OUTPUTS", eigen)
    s = make(TANH, batch_size=64, examples=800)
    whole = block_traces(s.risk, route="gauss-newton", rtol=0, layer_rtol=0, atol=0, max_passes=9, seed=0).value
    z = []
    for seed in range(SEEDS):
        found = block_traces(s.risk, route="gauss-newton", rtol=0.02, layer_rtol=0.05, atol=0, max_passes=9, seed=seed)
        assert found.draws < 1500
        z.append(z_scores(found, whole, slice(3)))
    assert_calibrated(z)


def test_gauss_newton_traces_from_drawn_labels():
    """Outputs too many to tell apart, as of a language model: one gradient of an example with labels of the model's."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).double()
        x, y = torch.randn(24, 3, 4).double(), torch.randint(0, 5, (24, 3))
    y[0, 1] = y[5, 2] = -100
    s = subject(net, net, Batches.from_arrays(x, y, batch_size=7), dtype="float64", device="cpu",
                loss="token-cross-entropy")
    rows = y.flatten() != -100
    tokens = Batches.from_arrays(x.reshape(-1, 4)[rows], y.flatten()[rows])
    flat = subject(net, net, tokens, dtype="float64", device="cpu")
    whole = block_traces(flat.risk, route="gauss-newton", rtol=0, layer_rtol=0, atol=0, max_passes=9, seed=0).value
    z = []
    for seed in range(SEEDS):
        found = block_traces(s.risk, route="gauss-newton", rtol=0.1, layer_rtol=9, atol=0, max_passes=60, seed=seed)
        z.append(z_scores(found, whole, slice(2)))
    assert_calibrated(z)

