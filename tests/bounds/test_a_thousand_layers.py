"""Nothing overflows for 1,000 layers: products of norms far beyond a float, networks far deeper than any in use."""

import functools
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import genmeasure as gm
from genmeasure import study
from genmeasure.bounds.assumptions import feed_forward
from genmeasure.data.batches import Batches
from genmeasure.path_norm import log_path_norm
from genmeasure.registry import bound
from genmeasure.study import Request, everything

QUICK = {"max_passes": 2, "trace_max_passes": 2, "sigmas": (0.001,), "steps": 4, "draws": 2, "probes": 2,
         "examples": 10, "depth": 3, "search_examples": 4, "rtol": 10.0, "layer_rtol": 10.0}
"""As little work as each member can be asked for."""


@functools.cache
def permutations(depth=1000):
    """A chain of permutations scaled by 2.2, so that the product of the norms is 2.2^depth."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = []
        for _ in range(depth):
            linear = nn.Linear(3, 3, bias=False).double()
            linear.weight.data = 2.2 * torch.eye(3).double()[torch.randperm(3)]
            layers += [linear, nn.ReLU()]
        net, x = nn.Sequential(*layers[:-1]), 1e-150 * (1 + torch.rand(8, 3).double())
    start = {k: v * 0.9 for k, v in net.state_dict().items()}
    return gm.subject(net, start, [(x, net(x).argmax(1))], dtype="float64", device="cpu")


class Block(nn.Module):
    """x + B relu(A x + a): two units that do little, and one of large weights that is never on."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 3), nn.Linear(3, 3)
        with torch.no_grad():
            self.outer.weight *= 0.05
            self.outer.bias *= 0.05
            self.inner.weight[2], self.outer.weight[:, 2], self.inner.bias[2] = 6, 6, -1e4
            self.inner.bias[0] = 3

    def forward(self, x):
        return x + self.outer(torch.relu(self.inner(x)))


@functools.cache
def residual():
    """1,001 layers in blocks of two, all outputs of moderate size."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(*(Block() for _ in range(500)), nn.Linear(3, 3))
        start = {k: v + 1e-3 * torch.randn(v.shape) if k.endswith("weight") else v for k, v in net.state_dict().items()}
        x, more = torch.randn(10, 3), torch.randn(6, 3)
    return gm.subject(net, start, Batches.from_arrays(x, net(x).argmax(1)),
                      Batches.from_arrays(more, net(more).argmax(1)), device="cpu")


def test_norm_bounds_of_a_chain():
    s, product = permutations(), 1000 * math.log10(2.2)
    logs = {}
    for name in ("pitas2017", "long2020", "gouk2021", "li2021", "neyshabur2018", "bartlett2017", "gonon2024",
                 "lipschitz"):
        frame = gm.measure(s, name, **({"variant": "table"} if name in ("li2021", "neyshabur2018") else {}))
        logs[name] = frame.loc[frame["term"].str.startswith("log10"), "value"].to_numpy()
        assert len(logs[name])
        assert np.isfinite(logs[name]).all(), name
    assert logs["lipschitz"] == pytest.approx([product] * 3, rel=1e-6)
    expected = product + math.log10(math.sqrt(9000 / 8) * math.sqrt(1000) * 0.1)
    assert logs["long2020"] == pytest.approx([expected], rel=1e-6)
    assert log_path_norm(s) / math.log(10) == pytest.approx(product + math.log10(3), rel=1e-9)


@pytest.mark.parametrize("depth", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_cushions_of_a_chain(depth):
    """All cushions are 1/sqrt(3), c and beta are 1: max |f| / margin sqrt(9 depth / n)."""
    s = permutations(depth)
    found = gm.measure(s, "arora2018", examples=4, probes=2).set_index("term")["value"]
    outputs = s.model(torch.cat([b.inputs[0] for b in s.train])).detach()
    largest = (outputs / outputs.max()).norm(dim=1).max().item() * outputs.max().item()
    expected = math.log10(largest) - math.log10(found["margin"]) + math.log10(9 * depth / 8) / 2
    assert found["log10"] == pytest.approx(expected, rel=1e-9)
    theorem = gm.measure(s, "arora2018", variant="theorem", examples=4, probes=2).set_index("term")["value"]
    factor = 144 * depth**2 * math.log(8 * depth * 3 / 0.05)
    assert theorem["complexity"] == pytest.approx(10**expected * math.sqrt(factor), rel=1e-8)


MEASURES = ("distance", "gap", "gauss-newton-trace", "hessian-distance", "hessian-trace", "jiang2020", "lipschitz",
            "margin", "norm")
"""Those that bounds are made of; what `cushion` has more than `arora2018` takes minutes."""
REQUESTS = [Request(r.name, {**{k: v for k, v in QUICK.items() if k in r.member.defaults}, **r.parameters})
            for r in everything() if r.name in bound or r.name in MEASURES]


def label(request):
    return "-".join([request.name, *(str(request.parameters[k]) for k in ("variant",) if k in request.parameters)])


@pytest.mark.slow
@pytest.mark.parametrize("request_", REQUESTS, ids=label)
def test_every_bound_on_a_residual_network(request_):
    """Finite numbers; a bound that does not fit a float is given by its logarithm; or the reason why there is none."""
    rows = study.read(residual(), request_)
    if set(rows["term"]) == {"not-defined"}:
        assert "no expression" in json.loads(rows["params"].iloc[0])["found"]["not defined"]
        return
    values = rows.set_index("term")["value"]
    if request_.name in bound:
        overflown = {"total", "complexity"} if values["total"] == math.inf else set()
        assert math.isfinite(values["log10"])
        if overflown:
            assert values["log10"] > 300
        rows = rows[~rows["term"].isin(overflown)]
    assert np.isfinite(rows["value"]).all()


def test_a_deep_chain_is_known_as_homogeneous():
    """1.25^1000 would overflow in float32."""
    s = permutations()
    assert feed_forward(s, {}) is None
    with_bias = nn.Sequential(*(nn.Linear(3, 3) for _ in range(1000)))
    for linear in with_bias:
        linear.weight.data, linear.bias.data = torch.eye(3), 0.01 * torch.ones(3)
    x = torch.ones(4, 3)
    found = gm.subject(with_bias, with_bias, [(x, torch.zeros(4, dtype=torch.long))], device="cpu")
    assert "are not homogeneous of degree 1000" in feed_forward(found, {})


def test_what_the_residual_network_asks_of_the_bounds():
    """The product of its norms does not fit a float, in either precision."""
    found = gm.measure(residual(), "lipschitz").set_index("term")["value"]
    assert found["log10-product"] > 700
    assert found["log10-graph"] > 700
