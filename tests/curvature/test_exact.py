"""Float64 against a dense Hessian, on networks with a convolution, BatchNorm, a residual branch and a head."""

import pytest
import scipy.linalg
import torch
from torch import nn
from torch.func import functional_call, hessian

from genmeasure.curvature.forms import hessian_forms, positive_forms
from genmeasure.curvature.gauss_newton import gauss_newton_forms, gauss_newton_traces, piecewise_linear
from genmeasure.curvature.lanczos import extreme_eigenvalues
from genmeasure.curvature.noise import antithetic_difference
from genmeasure.curvature.products import hessian_product
from genmeasure.curvature.trace import block_traces, hutchinson
from genmeasure.data.batches import Batches
from genmeasure.subject import subject


class Net(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.inner = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3 * 4, 3)
        self.activation = activation

    def forward(self, x):
        x = self.activation(self.norm(self.conv(x)))
        x = self.activation(x + self.inner(x))
        return self.head(nn.functional.avg_pool2d(x, 2).flatten(1))


def make(activation, batch_size=5):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, start = Net(activation).double(), Net(activation).double()
        for module in (net, start):
            module.norm.running_mean.normal_()
            module.norm.running_var.uniform_(0.5, 2)
            module.norm.weight.data.uniform_(0.5, 2)
        x, y = torch.randn(12, 1, 4, 4).double(), torch.randint(0, 3, (12,))
    return subject(net, start, Batches.from_arrays(x, y, batch_size=batch_size), dtype="float64", device="cpu")


RELU, TANH = torch.relu, torch.tanh


class Dense:
    """Everything from full matrices: per-example losses as a function of one flat weight vector."""

    def __init__(self, s):
        self.subject, self.layers = s, s.layers
        self.shapes = [s.weight(x).shape for x in s.layers]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.point = torch.cat([s.weight(x).reshape(-1) for x in s.layers])
        batches = list(s.train)
        self.x = torch.cat([b.inputs[0] for b in batches])
        self.y = torch.cat([b.targets for b in batches])
        self.rows = [slice(sum(self.sizes[:i]), sum(self.sizes[:i + 1])) for i in range(len(self.sizes))]

    def loss(self, flat, rows=slice(None)):
        pieces = zip(self.layers, flat.split(self.sizes), self.shapes, strict=True)
        named = {layer.parameter: piece.reshape(shape) for layer, piece, shape in pieces}
        out = functional_call(self.subject.model, named, (self.x[rows],))
        return nn.functional.cross_entropy(out, self.y[rows])

    def hessian(self, rows=slice(None)):
        return hessian(lambda w: self.loss(w, rows))(self.point)


@pytest.fixture(scope="module", params=[RELU, TANH], ids=["relu", "tanh"])
def both(request):
    s = make(request.param)
    return s, Dense(s)


def test_value_and_gradient(both):
    s, dense = both
    assert s.risk.value() == pytest.approx(dense.loss(dense.point).item(), rel=1e-12)
    gradient = torch.func.grad(dense.loss)(dense.point)
    ours = torch.cat([s.risk.gradient()[x.name].reshape(-1) for x in s.layers])
    assert torch.allclose(ours, gradient, rtol=1e-10, atol=1e-13)


def test_hessian_product_has_all_blocks(both):
    s, dense = both
    vector = torch.randn(len(dense.point), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    pieces = zip(s.layers, vector.split(dense.sizes), dense.shapes, strict=True)
    product = hessian_product(s.risk, {x.name: piece.reshape(shape) for x, piece, shape in pieces})
    ours = torch.cat([product[x.name].reshape(-1) for x in s.layers])
    assert torch.allclose(ours, dense.hessian() @ vector, rtol=1e-9, atol=1e-12)


def test_hessian_product_of_one_layer_is_its_block(both):
    s, dense = both
    layer, rows = s.layers[1], dense.rows[1]
    v = s.displacement(layer)
    ours = hessian_product(s.risk, {layer.name: v})[layer.name].reshape(-1)
    assert torch.allclose(ours, dense.hessian()[rows, rows] @ v.reshape(-1), rtol=1e-9, atol=1e-12)


def test_piecewise_linearity_is_told_from_smoothness(both):
    s, _ = both
    assert piecewise_linear(s.risk) == (s.model.activation is RELU)


def test_a_complete_design_makes_hutchinson_exact(both):
    """The columns of a Hadamard matrix are signs whose outer products average to the identity."""
    s, dense = both
    size = 1 << (len(dense.point) - 1).bit_length()
    design = torch.from_numpy(scipy.linalg.hadamard(size)).double()[:len(dense.point)]
    total = torch.zeros(len(s.layers), dtype=torch.float64)
    split = torch.zeros_like(total)
    for batch in s.train:
        split += gauss_newton_traces(s.risk, batch).sum(0)
        for column in design.T:
            pieces = zip(s.layers, column.split(dense.sizes), dense.shapes, strict=True)
            probes = {x.name: piece.reshape(shape) for x, piece, shape in pieces}
            total += hutchinson(s.risk, batch, probes) / size
            split += hutchinson(s.risk, batch, probes, s.risk.residual_losses) / size
    blocks = torch.stack([dense.hessian()[r, r].trace() for r in dense.rows])
    assert torch.allclose(total / s.train.size, blocks, rtol=1e-9, atol=1e-12)
    assert torch.allclose(split / s.train.size, blocks, rtol=1e-9, atol=1e-12)


def test_gauss_newton_trace_is_exact_for_piecewise_linear_networks():
    s = make(RELU)
    dense = Dense(s)
    found = block_traces(s.risk, route="auto", rtol=0.02, layer_rtol=0.1, atol=0, max_passes=9, seed=0)
    blocks = torch.stack([dense.hessian()[r, r].trace() for r in dense.rows])
    assert found.route == "gauss-newton"
    assert torch.allclose(found.value, blocks, rtol=1e-9)
    assert found.estimate().stderr == 0


def test_random_signs_are_exact_over_a_complete_design():
    s = make(RELU)
    batch = next(iter(s.train))
    exact = gauss_newton_traces(s.risk, batch)
    design = torch.from_numpy(scipy.linalg.hadamard(4)[:3]).double()  # three outputs
    mean = sum(gauss_newton_traces(s.risk, batch, c.expand(len(batch), 3)) for c in design.T) / 4
    assert torch.allclose(mean, exact, rtol=1e-9)


@pytest.mark.parametrize("route", ["split", "hutchinson"])
def test_sampled_routes_agree_with_the_dense_trace(route):
    s = make(TANH)
    dense = Dense(s)
    found = block_traces(s.risk, route=route, rtol=0, layer_rtol=0, atol=0.4, max_passes=400, seed=0)
    blocks = torch.stack([dense.hessian()[r, r].trace() for r in dense.rows])
    stderr = found.covariance.diagonal().clamp(min=0).sqrt()
    assert ((found.value - blocks).abs() <= 4 * stderr + 1e-12).all()
    assert (stderr[-1] == 0) == (route == "split")  # the outputs are linear in the head
    assert (stderr[:-1] > 0).all()
    assert found.passes < 400
    assert found.estimate().stderr <= 0.4


def test_forms_of_every_example(both):
    s, dense = both
    for layer, rows in zip(s.layers, dense.rows, strict=True):
        v = s.displacement(layer)
        flat = v.reshape(-1)
        truth = torch.stack([flat @ dense.hessian(slice(i, i + 1))[rows, rows] @ flat for i in range(12)])
        assert torch.allclose(hessian_forms(s.risk, layer, v), truth, rtol=1e-9, atol=1e-12)
        if s.model.activation is RELU:
            assert torch.allclose(gauss_newton_forms(s.risk, layer, v), truth, rtol=1e-9, atol=1e-12)


def test_positive_forms_of_every_example(both):
    s, dense = both
    for layer, rows in zip(s.layers, dense.rows, strict=True):
        v = s.displacement(layer)
        flat, truth = v.reshape(-1), []
        for i in range(12):
            values, vectors = torch.linalg.eigh(dense.hessian(slice(i, i + 1))[rows, rows])
            truth.append(((vectors.T @ flat) ** 2 * values.clamp(min=0)).sum())
        truth = torch.stack(truth)
        found = positive_forms(s.risk, layer, v, every=True, steps=100, rtol=1e-9)
        assert torch.allclose(found.value, truth, rtol=1e-6, atol=1e-10)
        early = positive_forms(s.risk, layer, v, steps=4, rtol=1e-9)
        slack = 1e-9 * truth.max()
        for bracket in (found, early):
            assert (bracket.lower <= truth + slack).all()
            assert (truth <= bracket.upper + slack).all()
        pruned = positive_forms(s.risk, layer, v, steps=100, rtol=1e-9)
        assert pruned.value.max() == pytest.approx(truth.max().item(), rel=1e-6)
        assert pruned.top == int(truth.argmax())


def test_forms_do_not_depend_on_the_batch_size():
    few, many = make(TANH, batch_size=1), make(TANH, batch_size=12)
    for a, b in zip(few.layers, many.layers, strict=True):
        v = few.displacement(a)
        assert torch.allclose(hessian_forms(few.risk, a, v), hessian_forms(many.risk, b, v), rtol=1e-10, atol=1e-13)
        one, other = (positive_forms(s.risk, x, v, steps=30, rtol=1e-6) for s, x in ((few, a), (many, b)))
        assert one.value.max() == pytest.approx(other.value.max().item(), rel=1e-6)


def test_a_layer_that_did_not_move_has_forms_of_zero():
    s = make(TANH)
    found = positive_forms(s.risk, s.layers[0], torch.zeros_like(s.weight(s.layers[0])), steps=8, rtol=0.01)
    assert (found.value == 0).all()
    assert (found.upper == 0).all()


def test_extreme_eigenvalues(both):
    s, dense = both
    truth = torch.linalg.eigvalsh(dense.hessian())

    def product(flat):
        pieces = zip(s.layers, flat.split(dense.sizes), dense.shapes, strict=True)
        h = hessian_product(s.risk, {x.name: piece.reshape(shape) for x, piece, shape in pieces})
        return torch.cat([h[x.name].reshape(-1) for x in s.layers])
    smallest, largest = extreme_eigenvalues(product, len(dense.point), rtol=1e-8, max_products=150, like=dense.point,
                                            seed=0)
    assert largest.converged
    assert smallest.converged
    assert largest.value == pytest.approx(truth[-1].item(), rel=1e-8)
    assert smallest.value == pytest.approx(truth[0].item(), rel=1e-6)
    early = extreme_eigenvalues(product, len(dense.point), rtol=1e-12, max_products=4, like=dense.point, seed=0)[1]
    assert not early.converged
    assert (truth - early.value).abs().min() <= early.residual + 1e-12


def test_noise_pairs_have_no_first_order_term():
    """At a tiny sigma the pair's difference is the quadratic form of the noise, whatever the gradient."""
    s = make(TANH)
    dense = Dense(s)
    batch = next(iter(s.train))
    generator = torch.Generator().manual_seed(0)
    noise = {x.name: torch.randn(shape, generator=generator).double() for x, shape in
             zip(s.layers, dense.shapes, strict=True)}
    flat = torch.cat([noise[x.name].reshape(-1) for x in s.layers])
    sigma = 1e-3
    truth = sigma**2 / 2 * flat @ (dense.hessian(slice(0, 5)) * 5) @ flat
    assert antithetic_difference(s.risk, batch, noise, [sigma]).item() == pytest.approx(truth.item(), rel=2e-3)
