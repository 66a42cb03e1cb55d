"""Eigenvalues of Hessian and Gauss-Newton matrix as readings, by every route."""

import pytest
import torch
from dense import RELU, TANH, Dense, make
from torch import nn
from torch.func import functional_call, hessian

import genmeasure as gm
from genmeasure import demo, study
from genmeasure.cli import main
from genmeasure.data.batches import Batches
from genmeasure.errors import InputError
from genmeasure.registry import measure


@pytest.fixture(scope="module", params=[RELU, TANH], ids=["relu", "tanh"])
def both(request):
    s = make(request.param)
    return s, Dense(s)


def readings(s, name="hessian-top", **given):
    frame = gm.measure(s, name, **given)
    return {(row.layer, row.term): row.value for row in frame.itertuples()}, frame


EXACT = {"rtol": 1e-9, "max_products": 300}


@pytest.mark.parametrize("route", ["lanczos", "eigsh"])
def test_terms_of_all_layers_and_of_each(both, route):
    s, dense = both
    negative = 2 if route == "lanczos" else 1  # ARPACK is slow between copies of zero
    found, frame = readings(s, k=2, negative=negative, per_layer=True, route=route, rtol=1e-8, max_products=2000)
    blocks = {x.name: dense.hessian()[rows, rows] for x, rows in zip(s.layers, dense.rows, strict=True)}
    for layer, block in {**blocks, "total": dense.hessian()}.items():
        truth = torch.linalg.eigvalsh(block)
        scale = truth.abs().max().item()
        assert found[layer, "largest"] == pytest.approx(truth[-1].item(), rel=1e-7)
        assert found[layer, "largest-2"] == pytest.approx(truth[-2].item(), rel=1e-7)
        assert found[layer, "smallest"] == pytest.approx(truth[0].item(), rel=1e-6, abs=1e-7 * scale)
        assert found[layer, "converged"] == found[layer, "largest-2-converged"] == 1
        assert found[layer, "largest-2-residual"] <= 1e-8 * scale
        assert negative == 1 or found[layer, "smallest"] <= found[layer, "smallest-2"]
    units = frame.drop_duplicates("term").set_index("term")["unit"]
    assert set(units[[t for t in units.index if t.endswith("converged")]]) == {""}
    assert set(units[[t for t in units.index if not t.endswith("converged")]]) == {"loss/weight²"}


def test_the_defaults_keep_their_terms_and_every_term_has_a_flag(both):
    found, frame = readings(both[0])
    assert {t for _, t in found} == {"largest", "largest-residual", "largest-converged", "smallest",
                                     "smallest-residual", "smallest-converged", "converged"}
    assert (frame["stderr"] == 0).all()
    none, _ = readings(both[0], negative=0)
    assert {t for _, t in none} == {"largest", "largest-residual", "largest-converged", "converged"}


def test_routes_agree():
    s = make(TANH)  # of the ReLU network, the eigenvalue of largest modulus is negative
    values = [readings(s, route=route, rtol=1e-4, max_products=800)[0]["total", "largest"]
              for route in ("lanczos", "eigsh", "pyhessian")]
    assert values[1:] == pytest.approx([values[0]] * 2, rel=1e-4)
    theirs, _ = readings(s, route="pyhessian", rtol=1e-4, max_products=800)
    assert ("total", "smallest") not in theirs
    assert ("total", "largest-residual") in theirs


def test_layers_smaller_than_k_give_what_they_have():
    s = make(TANH)
    found, _ = readings(s, k=30, negative=0, per_layer=True, rtol=1e-6, max_products=300)
    assert sum(layer == "conv" and not term.endswith(("residual", "converged")) for layer, term in found) == 27
    assert ("total", "largest-30") in found


def test_gauss_newton_of_one_relu_layer_is_the_hessian(both):
    s, _ = both
    whole, _ = readings(s, per_layer=True, negative=0, **EXACT)
    gauss_newton, _ = readings(s, "gauss-newton-top", per_layer=True, **EXACT)
    same = {x.name: gauss_newton[x.name, "largest"] == pytest.approx(whole[x.name, "largest"], rel=1e-8)
            for x in s.layers}
    if s.model.activation is RELU:
        assert all(same.values())
    else:
        assert not all(same.values())
        assert same["head"]
    assert ("total", "smallest") not in gauss_newton
    least, _ = readings(s, "gauss-newton-top", negative=1, max_products=300)
    assert least["total", "smallest"] >= -1e-10
    assert readings(s, "gauss-newton-top", route="eigsh", **EXACT)[0]["total", "largest"] == pytest.approx(
        gauss_newton["total", "largest"], rel=1e-8)


@pytest.mark.parametrize(("name", "given", "ending"), [
    ("hessian-top", {"route": "lanzcos"}, r"did you mean 'lanczos'\?"),
    ("gauss-newton-top", {"route": "pyhessian"}, "known are: davidson, eigsh, lanczos"),
    ("hessian-top", {"k": 0}, "give k=1 or more"),
    ("hessian-top", {"k": 3, "max_products": 2}, "take max_products=4 or more"),
    ("hessian-top", {"k": -1}, "give a whole number, not negative"),
])
def test_bad_input(both, name, given, ending):
    with pytest.raises(InputError, match=f"{ending}$"):
        gm.measure(both[0], name, **given)


def test_the_demo_leaves_the_costly_members_out(monkeypatch):
    asked = []

    def run(subjects, requests, *given, **more):
        asked.extend(r.name for r in requests)
        raise InputError("enough")
    monkeypatch.setattr(study, "run", run)
    monkeypatch.setattr(demo, "make_checkpoints", lambda *given, **more: [])
    assert main(["demo"]) == 2
    costly = {"hessian-density", "gauss-newton-density", "gauss-newton-top", "cushion", "sharpness",
              "pacbayes-sharpness"}
    assert {m.name for m in measure if m.costly} == costly
    assert costly | set(asked) == {r.name for r in study.everything()}
    assert not costly & set(asked)


class Tokens(nn.Module):
    """[batch, tokens, 3] -> logits of the same shape."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x)))


@pytest.mark.parametrize("batch_size", [4, 6])
def test_sequences_weigh_every_token_alike_by_every_route(batch_size):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, x, y = Tokens().double(), torch.randn(6, 5, 3).double(), torch.randint(0, 3, (6, 5))
    y[0, 2:] = -100
    s = gm.subject(net, net, Batches.from_arrays(x, y, batch_size=batch_size), loss="token-cross-entropy",
                   dtype="float64", device="cpu")

    def mean_over_tokens(flat):
        weights = {"inner.weight": flat[:12].reshape(4, 3), "head.weight": flat[12:].reshape(3, 4)}
        return nn.functional.cross_entropy(functional_call(net, weights, (x,)).reshape(-1, 3), y.reshape(-1))
    point = torch.cat([net.inner.weight.detach().reshape(-1), net.head.weight.detach().reshape(-1)])
    truth = torch.linalg.eigvalsh(hessian(mean_over_tokens)(point))[-1].item()
    for route in ("lanczos", "eigsh", "pyhessian"):
        found, _ = readings(s, route=route, rtol=1e-5, max_products=500)
        assert found["total", "largest"] == pytest.approx(truth, rel=1e-5)
