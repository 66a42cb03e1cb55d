"""Closed forms and golden values of the reference (measures.md 14)."""

import itertools
import math

import numpy as np
import pytest
import torch
from dense import noise_differences
from torch import nn

from genmeasure.curvature.forms import absolute_value_bracket, hessian_forms, positive_forms
from genmeasure.curvature.gauss_newton import gauss_newton_forms
from genmeasure.curvature.lanczos import extreme_eigenvalues, lanczos
from genmeasure.curvature.noise import noise_curve, one_sided_curve, survey
from genmeasure.curvature.products import batch_hessian_product
from genmeasure.curvature.taps import find_taps
from genmeasure.curvature.trace import block_traces, hutchinson
from genmeasure.data.batches import Batches
from genmeasure.losses import Loss
from genmeasure.subject import subject


def linear(weight, start, x, y, loss="squared", batch_size=64):
    net, before = (nn.Linear(*reversed(w.shape), bias=False).double() for w in (weight, start))
    net.weight.data, before.weight.data = weight.double(), start.double()
    return subject(net, before, Batches.from_arrays(x.double(), y, batch_size=batch_size), loss=loss, dtype="float64",
                   device="cpu")


def quadratic(a):
    """L(w) = w'Aw / 2 summed over the examples, w = 0: the examples are the rows of a root of A."""
    root = torch.linalg.cholesky(a.double()).T
    zero = torch.zeros(1, len(a))
    return linear(zero, zero, root, torch.zeros(len(a), 1))


A = torch.tensor([[2.0, 1.0], [1.0, 3.0]])


def test_hutchinson_on_a_matrix_takes_two_values():
    s = quadratic(A)
    batch = next(iter(s.train))
    found = sorted(hutchinson(s.risk, batch, {"": torch.tensor([[1.0, sign]]).double()}).item() for sign in (1.0, -1.0))
    assert found == pytest.approx([3.0, 7.0], rel=1e-12)


def test_noise_stability_of_a_quadratic_is_its_parabola():
    """Gauss-Hermite nodes as noise integrate it exactly, for every sigma."""
    s = quadratic(A)
    batch = next(iter(s.train))
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    weights = weights / weights.sum()
    for sigma in (0.01, 1.0, 30.0):
        for one_sided in (False, True):
            total = sum(p * q * noise_differences(s, batch, {"": torch.tensor([[a, b]]).double()}, sigma, one_sided)
                        for a, p in zip(nodes, weights, strict=True) for b, q in zip(nodes, weights, strict=True))
            assert total == pytest.approx(sigma**2 / 2 * 5, rel=1e-10)


def one_minus_cosine(outputs, targets):
    return 1 - torch.cos(outputs[:, 0])


@pytest.mark.parametrize(("sigma", "stability"), [(0.1, 0.0049875208), (0.5, 0.1175030974), (1.0, 0.3934693403)])
def test_noise_stability_of_a_cosine(sigma, stability):
    loss = Loss("cosine", one_minus_cosine, upper=2.0, classification=False)
    zero = torch.zeros(1, 1)
    s = linear(zero, zero, torch.ones(1, 1), torch.zeros(1), loss)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    batch = next(iter(s.train))
    total = sum(w * noise_differences(s, batch, {"": torch.tensor([[u]]).double()}, sigma)
                for u, w in zip(nodes, weights, strict=True))
    assert total == pytest.approx(stability, abs=1e-8)
    assert total == pytest.approx(1 - math.exp(-sigma**2 / 2), rel=1e-10)


def test_antithetic_pairs_have_no_first_order_variance():
    """Away from the minimum a linear term is large; one-sided draws carry it, pairs do not."""
    s = linear(torch.full((1, 2), 100.0), torch.zeros(1, 2), torch.eye(2), torch.zeros(2, 1))
    pairs = noise_curve(s.risk, survey(s.risk), [0.01], rtol=0, max_passes=50, seed=0)
    single = one_sided_curve(s.risk, survey(s.risk), [0.01], rtol=0, max_passes=50, seed=0)
    assert pairs.stderr.item() < 1e-3 * single.stderr.item()
    assert abs(pairs.value.item() - 0.01**2 / 2) < 5 * pairs.stderr.item()


H = torch.tensor([[2.0, 1.0], [1.0, -1.0]], dtype=torch.float64)


@pytest.mark.parametrize(("v", "form", "positive", "upper"), [
    ((1.0, 1.0), 3.0, 3.5801257358, 3.6213203436), ((0.0, 1.0), -1.0, 0.1933752453, 0.2071067812)])
def test_positive_part_of_an_indefinite_matrix(v, form, positive, upper):
    v = torch.tensor([v], dtype=torch.float64)
    steps = list(lanczos(lambda q: q @ H, v, 2))
    length = v.square().sum().item()
    assert length * steps[0].diagonal[0, 0].item() == pytest.approx(form, abs=1e-10)
    low, high = absolute_value_bracket(steps[0])
    assert (form + length * low.item()) / 2 == pytest.approx(max(form, 0.0), abs=1e-10)
    assert (v @ H).norm().item() * v.norm().item() / 2 + form / 2 == pytest.approx(upper, abs=1e-9)
    low, high = absolute_value_bracket(steps[1])
    assert (form + length * low.item()) / 2 == pytest.approx(positive, abs=1e-9)
    assert high.item() == pytest.approx(low.item(), rel=1e-12)


def test_bracket_holds_and_narrows_on_a_hard_spectrum():
    """Many zero eigenvalues beside both signs: where plain quadrature is not monotone."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(60, 60, generator=generator, dtype=torch.float64)).Q
    values = torch.cat([torch.zeros(30), torch.randn(30, generator=generator)]).double()
    operator = basis @ torch.diag(values) @ basis.T
    v = torch.randn(1, 60, generator=generator, dtype=torch.float64)
    v /= v.norm()
    truth = ((v @ basis) ** 2 @ values.abs()).item()
    widths = []
    for t in lanczos(lambda q: q @ operator, v, 40):
        low, high = (x.item() for x in absolute_value_bracket(t))
        assert low - 1e-10 <= truth <= high + 1e-10
        widths.append(high - low)
    assert all(later <= earlier + 1e-7 for earlier, later in itertools.pairwise(widths))  # roots of rounding
    assert widths[-1] < 1e-8 < widths[7]


@pytest.mark.parametrize("bulk", [1e-3, 1e-5])
@pytest.mark.parametrize("outside", [0.01, 1.0])
def test_bracket_holds_with_outliers_over_a_small_bulk(bulk, outside):
    """Squares of the bulk are far below the top: the inner quadrature must not take them for rounding."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(200, 200, generator=generator, dtype=torch.float64)).Q
    values = torch.cat([torch.tensor([5.0, -3.0, 2.0]), bulk * torch.randn(197, generator=generator)]).double()
    weights = torch.cat([torch.full((3,), outside), torch.ones(197)]).double()
    v = (basis @ (weights * torch.randn(200, generator=generator)))[None]
    v /= v.norm()
    operator = basis @ torch.diag(values) @ basis.T
    truth = ((v @ basis) ** 2 @ values.abs()).item()
    for t in lanczos(lambda q: q @ operator, v, 30):
        low, high = (x.item() for x in absolute_value_bracket(t))
        assert low - 1e-12 <= truth <= high + 1e-12
    assert high - low < 0.2 * truth


def test_extreme_eigenvalues_of_an_indefinite_matrix():
    smallest, largest = extreme_eigenvalues(lambda q: H @ q, 2, rtol=1e-12, max_products=5, like=H, seed=0)
    assert smallest.value == pytest.approx(-1.3027756377, abs=1e-10)
    assert largest.value == pytest.approx(2.3027756377, abs=1e-10)


def test_squared_loss_of_a_linear_model():
    x, v = torch.tensor([[1.0, 2.0], [0.5, -1.0], [3.0, 0.0]]), torch.tensor([[0.3, -0.7]])
    s = linear(v, torch.zeros(1, 2), x, torch.tensor([[0.1], [0.2], [0.3]]), batch_size=2)
    truth = (x.double() @ v[0].double()) ** 2
    layer = s.layers[0]
    assert torch.allclose(hessian_forms(s.risk, {layer.name: s.displacement(layer)})[:, 0], truth, rtol=1e-12)
    assert torch.allclose(gauss_newton_forms(s.risk, {layer.name: s.displacement(layer)})[:, 0], truth, rtol=1e-12)
    trace = block_traces(s.risk, route="auto", rtol=0.1, layer_rtol=0.1, atol=0, max_passes=5, seed=0).estimate()
    assert trace.value == pytest.approx(x.double().square().sum(1).mean().item(), rel=1e-9)


@pytest.mark.parametrize(("p", "form", "trace", "top"), [
    ((1 / 3, 1 / 3, 1 / 3), 2 / 3, 10 / 3, 5 / 3), ((0.7, 0.2, 0.1), 0.29, 2.3, 1.6720153254)])
def test_softmax_of_a_linear_model(p, form, trace, top):
    """x = (1, 2) and logits ln p: W = outer(ln p, x) / |x|^2."""
    x, v = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    weight = torch.outer(torch.tensor(p, dtype=torch.float64).log(), x[0].double()) / 5
    s = linear(weight, weight - v, x, torch.tensor([0]), "cross-entropy")
    layer, batch = s.layers[0], next(iter(s.train))
    for taps in (None, find_taps(s.risk)):
        assert hessian_forms(s.risk, {layer.name: v.double()}, taps).item() == pytest.approx(form, abs=1e-9)
        assert gauss_newton_forms(s.risk, {layer.name: v.double()}, taps).item() == pytest.approx(form, abs=1e-9)
    found = block_traces(s.risk, route="auto", rtol=0, layer_rtol=0, atol=0, max_passes=5, seed=0).estimate()
    assert found.value == pytest.approx(trace, abs=1e-9)

    def product(flat):
        return batch_hessian_product(s.risk, batch, {layer.name: flat.reshape(3, 2)})[layer.name].reshape(-1)
    largest = extreme_eigenvalues(product, 6, rtol=1e-10, max_products=6, like=weight, seed=0)[1]
    assert largest.value == pytest.approx(top, abs=1e-8)


@pytest.fixture(scope="module")
def tanh_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        x = torch.randn(6, 4).double()
        y = torch.randint(0, 3, (6,))
        v = [torch.randn_like(net[0].weight), torch.randn_like(net[2].weight)]
    start = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    start.load_state_dict(net.state_dict())
    start[0].weight.data -= v[0]
    start[2].weight.data -= v[1]
    return subject(net, start, Batches.from_arrays(x, y), dtype="float64", device="cpu"), v


def test_tanh_net_forms(tanh_net):
    s, v = tanh_net
    batch, n = next(iter(s.train)), 6
    joint = batch_hessian_product(s.risk, batch, {"0": v[0], "2": v[1]})
    assert (joint["0"] * v[0]).sum().item() / n == pytest.approx(0.8078140839, abs=1e-9)
    assert (joint["2"] * v[1]).sum().item() / n == pytest.approx(0.4944332880, abs=1e-9)
    for layer, direction, block in zip(s.layers, v, (0.6348941516, 0.3215133558), strict=True):
        forms = hessian_forms(s.risk, {layer.name: direction}, find_taps(s.risk))
        assert forms.mean().item() == pytest.approx(block, abs=1e-9)


def test_tanh_net_block_of_the_mean_loss(tanh_net):
    """Eigenvalues, positive part, upper bracket and Lanczos quadrature of the first layer's block."""
    s, v = tanh_net
    batch, flat = next(iter(s.train)), v[0].reshape(1, -1)

    def product(q):
        rows = [batch_hessian_product(s.risk, batch, {"0": r.reshape(5, 4)})["0"].reshape(-1) / 6 for r in q]
        return torch.stack(rows)
    smallest, largest = extreme_eigenvalues(lambda q: product(q[None])[0], 20, rtol=1e-9, max_products=20, like=flat,
                                            seed=1)
    assert smallest.value == pytest.approx(-0.5937917912, abs=1e-8)
    assert largest.value == pytest.approx(0.6592554722, abs=1e-8)
    length, expected = flat.square().sum(), {1: 0.63489, 2: 2.27334, 3: 1.20781, 5: 1.23872, 8: 1.32339, 12: 1.37484,
                                             16: 1.37326}
    for m, t in enumerate(lanczos(product, flat, 20), 1):
        theta, vectors = t.ritz()
        value = (length * (vectors[:, 0] ** 2 * theta.clamp(min=0)).sum()).item()
        if m in expected:
            assert value == pytest.approx(expected[m], abs=2e-5)
        low, high = (length.item() * (t.diagonal[0, 0] + side).item() / 2 for side in absolute_value_bracket(t))
        assert low - 1e-9 <= 1.3737284988 <= high + 1e-9
        if m == 1:
            assert high == pytest.approx(2.3682807776, abs=1e-8)
    assert value == pytest.approx(1.3737284988, abs=1e-8)


def test_forms_are_invariant_to_rescaling_with_the_start():
    """ReLU net, W1 and its start times a, W2 and its start over a: v'Hv is unchanged (measures.md 14)."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        nets = [nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)).double()
                for _ in range(2)]
        x, y = torch.randn(9, 4).double(), torch.randint(0, 3, (9,))

    def forms():
        s = subject(*nets, Batches.from_arrays(x, y), dtype="float64", device="cpu")
        return [positive_forms(s.risk, k, s.displacement(k), every=True, steps=30, rtol=1e-10).value for k in s.layers]
    before = forms()
    for net in nets:
        net[0].weight.data *= 10
        net[2].weight.data /= 10
    for one, other in zip(before, forms(), strict=True):
        assert torch.allclose(one, other, rtol=1e-9)
