"""Traces from losses alone: against dense Hessians, in inference mode, and where there is no derivative."""

import json

import pytest
import torch
from dense import RELU, TANH, Dense, assert_calibrated, make
from torch import nn

import genmeasure as gm
from genmeasure.curvature.forward import forward_traces
from genmeasure.curvature.noise import survey
from genmeasure.curvature.piecewise import Structure, structure
from genmeasure.data.batches import Batches
from genmeasure.errors import InputError
from genmeasure.layers import differentiable
from genmeasure.subject import subject

SEEDS = 200
SETTING = {"rtol": 0.1, "layer_rtol": 0.15, "atol": 0.0, "max_passes": 4000}


@pytest.fixture(scope="module")
def smooth():
    s = make(TANH)
    dense = Dense(s)
    hessian = dense.hessian()
    return s, torch.stack([hessian[rows, rows].trace() for rows in dense.rows])


def test_traces_of_a_smooth_network_and_their_bias(smooth):
    s, truth = smooth
    found = forward_traces(s.risk, survey(s.risk), sigma=0.01, seed=0, **SETTING)
    stderr = found.covariance.diagonal().sqrt()
    assert ((found.value - truth).abs() < 4 * stderr).all()
    assert (stderr < 0.17 * truth.abs()).all()
    total = found.estimate()
    assert abs(total.value - truth.sum().item()) < 4 * total.stderr
    assert (found.bias.abs() < 0.01 * found.value.abs()).all()
    wide = forward_traces(s.risk, survey(s.risk), sigma=1.0, seed=0, **SETTING)
    off = wide.value - truth
    assert (off.abs() > 0.1 * truth).any()
    assert (off.abs() < wide.bias.abs() + 4 * wide.covariance.diagonal().sqrt()).all()


def test_the_reading_states_the_route_and_the_bias(smooth):
    s, truth = smooth
    frame = gm.measure(s, "hessian-trace", route="forward", rtol=0.1, layer_rtol=0.3)
    found = json.loads(frame["params"].iloc[0])["found"]
    assert found["route"] == "forward"
    assert set(found["bias"]) == {*(x.name for x in s.layers), "total"}
    at = frame.set_index("layer")
    assert abs(at.loc["total", "value"] - truth.sum().item()) < 4 * at.loc["total", "stderr"]
    assert at.loc["total", "stderr"] >= abs(found["bias"]["total"])


@pytest.mark.slow
def test_intervals_cover(smooth):
    s, truth = smooth
    z, sample = [], survey(s.risk)
    for seed in range(SEEDS):
        found = forward_traces(s.risk, sample, sigma=0.01, seed=seed, **{**SETTING, "rtol": 0.3, "layer_rtol": 0.5})
        each = (found.value - truth) / found.covariance.diagonal().sqrt()
        total = found.estimate()
        z.append([*each.tolist(), (total.value - truth.sum().item()) / total.stderr])
    assert_calibrated(z)


def test_kinks_do_not_bias_a_piecewise_linear_network():
    """Noise of a tenth of the weights crosses many kinks, which second differences of the loss take for curvature."""
    s = make(RELU)
    dense = Dense(s)
    hessian = dense.hessian()
    truth = torch.stack([hessian[rows, rows].trace() for rows in dense.rows])
    found = forward_traces(s.risk, survey(s.risk), sigma=0.02, seed=0, **{**SETTING, "layer_rtol": 0.3})
    assert found.structure == Structure(linear=True, kinks=True)
    assert ((found.value - truth).abs() < 4 * found.covariance.diagonal().sqrt()).all()
    assert (found.bias < 0.1 * truth).all()


class Spread(nn.Module):
    """A function of the outputs of a linear map, and that map once more."""

    def __init__(self, function, twice=False):
        super().__init__()
        self.inner, self.head, self.function, self.twice = nn.Linear(4, 4), nn.Linear(4, 3), function, twice

    def forward(self, x):
        x = self.function(self.inner(x))
        return self.head(torch.relu(self.inner(x)) if self.twice else x)


@pytest.mark.parametrize(("function", "twice", "expected"), [
    (nn.functional.relu, False, Structure(True, True)),
    (nn.functional.relu, True, Structure(False, True)),  # quadratic in the weights of the first map
    (nn.functional.gelu, False, Structure(False, False)),
    (lambda x: x.relu() * x.sum(1, keepdim=True), False, Structure(False, True)),
    (lambda x: 1 / x, False, Structure(False, False)),
    (lambda x: torch.where(x > 0, x, x / 10), False, Structure(False, True)),
    (lambda x: 3 * x.mean(1, keepdim=True) + x[:, :4].flip(1), False, Structure(True, False))])
def test_the_structure_is_read_off_the_operations(function, twice, expected):
    net = Spread(function, twice)
    s = subject(net, net, Batches.from_arrays(torch.rand(6, 4) + 1, torch.tensor([0, 1, 2] * 2)), device="cpu")
    assert structure(s.risk) == expected


class Rounded(nn.Module):
    """Passes its inputs through an operation that autograd does not see."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x)).detach())


def test_no_derivative_is_needed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, x, y = Rounded().double(), torch.randn(20, 4).double(), torch.randint(0, 3, (20,))
        same = nn.Sequential(net.inner, nn.Tanh(), net.head)
    data = Batches.from_arrays(x, y)
    blind, seeing = (subject(m, m, data, dtype="float64", device="cpu") for m in (net, same))
    found = gm.measure(blind, "hessian-trace", route="forward", rtol=0.05).set_index("layer")
    truth = gm.measure(seeing, "hessian-trace", rtol=0.01, layer_rtol=0.02).set_index("layer")
    for name, other in (("inner", "0"), ("head", "2"), ("total", "total")):
        error = (found.loc[name, "stderr"] ** 2 + truth.loc[other, "stderr"] ** 2) ** 0.5
        assert abs(found.loc[name, "value"] - truth.loc[other, "value"]) < 4 * error
    assert found.loc["inner", "value"] > 0


@pytest.mark.parametrize("inside", [False, True])
def test_it_runs_in_inference_mode_and_leaves_no_trace_of_it(inside):
    s = make(RELU)
    with torch.inference_mode(inside):
        frame = gm.measure(s, "hessian-trace", route="forward", rtol=0.5, layer_rtol=1.0)
    again = gm.measure(make(RELU), "hessian-trace", route="forward", rtol=0.5, layer_rtol=1.0)
    assert frame["value"].tolist() == again["value"].tolist()
    assert all(not w.is_inference() for w in s.state.values())
    exact = gm.measure(s, "hessian-trace", rtol=0.01)  # derivatives afterwards
    assert exact["stderr"].iloc[-1] == 0


def test_traces_of_a_transformer():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(3, 8)
            self.encoder = nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.encoder(self.embed(x)).mean(1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, x, y = Rows(), torch.randn(24, 4, 3).double(), torch.randint(0, 3, (24,))
    s = subject(net, net, Batches.from_arrays(x, y), dtype="float64", device="cpu")
    dense = Dense(s)
    with differentiable():
        hessian = dense.hessian()
    truth = torch.stack([hessian[rows, rows].trace() for rows in dense.rows])
    found = forward_traces(s.risk, survey(s.risk), sigma=0.01, seed=0, **{**SETTING, "layer_rtol": 0.5})
    assert len(truth) == 6
    assert ((found.value - truth).abs() < 4 * found.covariance.diagonal().sqrt()).all()
    total = found.estimate()
    assert abs(total.value - truth.sum().item()) < 4 * total.stderr
    assert total.stderr < 0.15 * truth.sum().item()


def test_bad_settings_are_refused():
    s = make(RELU)
    with pytest.raises(InputError, match=r"did you mean 'forward'\?$"):
        gm.measure(s, "hessian-trace", route="forwards")
    with pytest.raises(InputError, match="a standard deviation must be positive$"):
        gm.measure(s, "hessian-trace", route="forward", forward_sigma=0.0)
