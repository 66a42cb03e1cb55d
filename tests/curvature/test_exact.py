"""Float64 against a dense Hessian, on networks with a convolution, BatchNorm, a residual branch and a head."""

import pytest
import scipy.linalg
import torch
from dense import RELU, TANH, Dense, make, noise_differences, small_net_with

from genmeasure.curvature import trace
from genmeasure.curvature.forms import hessian_forms, positive_forms
from genmeasure.curvature.gauss_newton import by_count, gauss_newton_forms, piecewise_linear
from genmeasure.curvature.lanczos import extreme_eigenvalues
from genmeasure.curvature.products import Operator, hessian_product
from genmeasure.curvature.survey import negligible
from genmeasure.curvature.taps import find_taps
from genmeasure.curvature.trace import block_traces, hutchinson
from genmeasure.data.batches import Batches
from genmeasure.errors import InputError


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
    split = gauss_newton_blocks(s) * s.train.size
    for batch in s.train:
        for column in design.T:
            pieces = zip(s.layers, column.split(dense.sizes), dense.shapes, strict=True)
            probes = {x.name: piece.reshape(shape) for x, piece, shape in pieces}
            total += hutchinson(s.risk, batch, probes) / size
            split += hutchinson(s.risk, batch, probes, s.risk.residual_losses) / size
    blocks = torch.stack([dense.hessian()[r, r].trace() for r in dense.rows])
    assert torch.allclose(total / s.train.size, blocks, rtol=1e-9, atol=1e-12)
    assert torch.allclose(split / s.train.size, blocks, rtol=1e-9, atol=1e-12)


def gauss_newton_blocks(s):
    """Tr G_ii with every pair taken."""
    found = block_traces(s.risk, route="gauss-newton", rtol=0, layer_rtol=0, atol=0, max_passes=9, seed=0)
    assert found.estimate().stderr == 0
    assert found.draws == s.train.size
    return found.value


@pytest.mark.parametrize("eigen", [0, 32], ids=["classes", "eigenvectors"])
@pytest.mark.parametrize("first", [4, 7, 128])
def test_gauss_newton_trace_is_exact_for_piecewise_linear_networks(eigen, first, monkeypatch):
    monkeypatch.setattr("genmeasure.curvature.survey.EIGEN_OUTPUTS", eigen)
    monkeypatch.setattr(trace, "FIRST_PAIRS", first)
    s = make(RELU)
    dense = Dense(s)
    found = block_traces(s.risk, route="auto", rtol=0, layer_rtol=0, atol=0, max_passes=9, seed=0)
    blocks = torch.stack([dense.hessian()[r, r].trace() for r in dense.rows])
    assert found.route == "gauss-newton"
    assert found.linear == (True, True, True)
    assert torch.allclose(found.value, blocks, rtol=1e-9)
    assert found.estimate().stderr == 0


def test_the_gauss_newton_trace_needs_no_taps(monkeypatch):
    tapped = gauss_newton_blocks(make(TANH))
    monkeypatch.setattr(trace, "find_taps", lambda risk: None)
    assert torch.allclose(gauss_newton_blocks(make(TANH)), tapped, rtol=1e-9)
    found = block_traces(make(TANH).risk, route="auto", rtol=9, layer_rtol=9, atol=0, max_passes=30, seed=0)
    assert found.route == "hutchinson"


def test_routes_that_a_network_or_a_loss_does_not_allow_say_which_one_does(monkeypatch):
    setting = {"rtol": 1, "layer_rtol": 1, "atol": 0, "max_passes": 2, "seed": 0}
    with monkeypatch.context() as patch:
        patch.setattr(trace, "find_taps", lambda risk: None)
        with pytest.raises(InputError, match="drawn example by example; take route=hutchinson$"):
            block_traces(make(TANH).risk, route="split", **setting)
    monkeypatch.setattr("genmeasure.curvature.survey.EIGEN_OUTPUTS", 1)
    s = small_net_with(lambda outputs, targets: outputs.square().sum(1))
    with pytest.raises(InputError, match="Hessian too large to decompose; take route=hutchinson$"):
        block_traces(s.risk, route="gauss-newton", **setting)
    assert block_traces(s.risk, route="auto", **setting).route == "hutchinson"


@pytest.mark.parametrize("eigen", [0, 32], ids=["classes", "eigenvectors"])
def test_a_sample_of_pairs_agrees_with_the_whole(eigen, monkeypatch):
    monkeypatch.setattr("genmeasure.curvature.survey.EIGEN_OUTPUTS", eigen)
    monkeypatch.setattr(trace, "FIRST_PAIRS", 100)
    monkeypatch.setattr(trace, "ENOUGH", 5)
    s = make(TANH, examples=200)
    whole = gauss_newton_blocks(s)
    few = block_traces(s.risk, route="gauss-newton", rtol=9, layer_rtol=9, atol=0, max_passes=9, seed=0)
    assert 60 < few.draws < 200
    stderr = few.covariance.diagonal().sqrt()
    assert (stderr > 0).all()
    assert ((few.value - whole).abs() < 4 * stderr).all()


def test_an_unknown_route_names_the_known_ones():
    with pytest.raises(InputError, match="did you mean 'hutchinson'[?]$"):
        block_traces(make(TANH).risk, route="hutch", rtol=0, layer_rtol=0, atol=0, max_passes=1, seed=0)


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
    assert found.draws < 400 * 12
    assert found.estimate().stderr <= 0.4


def taps_of(s, tapped):
    return find_taps(s.risk) if tapped else None


def displacements(s):
    return {x.name: s.displacement(x) for x in s.layers}


@pytest.mark.parametrize("tapped", [True, False])
def test_forms_of_every_example(both, tapped):
    s, dense = both
    found = hessian_forms(s.risk, displacements(s), taps_of(s, tapped))
    for layer, rows, column in zip(s.layers, dense.rows, found.T, strict=True):
        flat = s.displacement(layer).reshape(-1)
        truth = torch.stack([flat @ dense.hessian(slice(i, i + 1))[rows, rows] @ flat for i in range(12)])
        assert torch.allclose(column, truth, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tapped", [True, False])
def test_gauss_newton_forms_of_every_example(both, tapped):
    s, dense = both
    found = gauss_newton_forms(s.risk, displacements(s), taps_of(s, tapped))
    hessian = hessian_forms(s.risk, displacements(s))
    p = dense.outputs(dense.point).softmax(1)
    a = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    for i, layer in enumerate(s.layers):
        v, jacobian = s.displacement(layer).reshape(-1), dense.output_jacobian(layer)  # [examples, outputs, weights]
        truth = torch.einsum("nkw,w,nkl,nlz,z->n", jacobian, v, a, jacobian, v)
        assert torch.allclose(found[:, i], truth, rtol=1e-9)
        if s.model.activation is RELU:
            assert torch.allclose(found[:, i], hessian[:, i], rtol=1e-9, atol=1e-12)


def test_layers_of_which_nothing_is_asked_are_not_waited_for():
    s, setting = make(TANH, examples=60), {"route": "split", "rtol": torch.inf, "atol": 0, "max_passes": 9, "seed": 0}
    few, many = (block_traces(s.risk, layer_rtol=rtol, **setting) for rtol in (torch.inf, 0.1))
    assert few.draws < many.draws
    assert (few.covariance.diagonal()[:2] > 0).all()


def test_layers_at_their_limit_end_the_drawing():
    """Nothing is left to draw for the layer that is short, while others could go on."""
    s = make(TANH, examples=60)
    found = block_traces(s.risk, route="split", rtol=torch.inf, layer_rtol=1e-9, atol=0, max_passes=5, seed=0)
    assert found.draws < 60 * 5 * 2 * len(s.layers)


def test_nothing_is_negligible_among_equals():
    assert not negligible(torch.ones(300, 10, dtype=torch.float64), torch.float32).any()
    assert not negligible(torch.zeros(3), torch.float32).any()
    sizes = torch.tensor([1.0, 1e-7, 0.0, 1e-6, 0.5, 1e-4], dtype=torch.float64)
    assert negligible(sizes, torch.float32).tolist() == [False, True, True, True, False, False]
    assert negligible(sizes, torch.float64).tolist() == [False, False, True, False, False, False]


def test_what_rounding_hides_is_left_out(monkeypatch):
    """A confident network, where most examples are as good as flat; float64 with the rounding of float32 assumed."""
    s = make(RELU, examples=64, confidence=300)
    taps, v = find_taps(s.risk), torch.ones(Operator(s.risk, s.layers).size, dtype=torch.float64)

    def measured():
        before = s.risk.passes
        forms = gauss_newton_forms(s.risk, displacements(s), taps)
        between = s.risk.passes
        return forms, Operator(s.risk, s.layers)(v), between - before, s.risk.passes - between
    truth, product, *costs = measured()
    monkeypatch.setattr("genmeasure.curvature.survey.ROUNDINGS", 100 * 2.0**29)
    found, near, *less = measured()
    assert (found == 0).any()
    assert all(a < 0.9 * b for a, b in zip(less, costs, strict=True))
    assert ((found - truth).abs().max(0).values < 1e-3 * truth.max(0).values).all()
    assert ((found - truth).abs().mean(0) < 1e-3 * truth.mean(0)).all()
    assert 0 < (near - product).norm() < 1e-3 * product.norm()


def test_examples_sorted_by_count_are_all_there_once():
    source = Batches.from_arrays(torch.arange(50.0), torch.zeros(50), batch_size=3)
    counts = torch.arange(50) * 7 % 5
    found = list(by_count(source, counts))
    for batch in found:
        assert torch.equal(batch.inputs[0], batch.rows.float())
        assert torch.equal(counts[batch.rows], counts[batch.rows].sort(descending=True).values)
    assert max(map(len, found)) <= 3
    assert torch.cat([b.rows for b in found]).sort().values.tolist() == counts.nonzero().squeeze(1).tolist()


@pytest.mark.parametrize("tapped", [True, False])
def test_positive_forms_of_every_example(both, tapped):
    s, dense = both
    taps = taps_of(s, tapped)
    for layer, rows in zip(s.layers, dense.rows, strict=True):
        v = s.displacement(layer)
        flat, truth = v.reshape(-1), []
        for i in range(12):
            values, vectors = torch.linalg.eigh(dense.hessian(slice(i, i + 1))[rows, rows])
            truth.append(((vectors.T @ flat) ** 2 * values.clamp(min=0)).sum())
        truth = torch.stack(truth)
        found = positive_forms(s.risk, layer, v, every=True, steps=100, rtol=1e-9, taps=taps)
        assert torch.allclose(found.value, truth, rtol=1e-6, atol=1e-10)
        early = positive_forms(s.risk, layer, v, steps=4, rtol=1e-9, taps=taps)
        slack = 1e-9 * truth.max()
        for bracket in (found, early):
            assert (bracket.lower <= truth + slack).all()
            assert (truth <= bracket.upper + slack).all()
        pruned = positive_forms(s.risk, layer, v, steps=100, rtol=1e-9, taps=taps)
        assert pruned.value.max() == pytest.approx(truth.max().item(), rel=1e-6)
        assert pruned.top == int(truth.argmax())


@pytest.mark.parametrize("tapped", [True, False])
def test_forms_do_not_depend_on_the_batch_size(tapped):
    few, many = make(TANH, batch_size=1), make(TANH, batch_size=12)
    for forms in (hessian_forms, gauss_newton_forms):
        one, other = (forms(s.risk, displacements(s), taps_of(s, tapped)) for s in (few, many))
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-13)
    for layer in few.layers:
        one, other = (positive_forms(s.risk, layer, few.displacement(layer), steps=30, rtol=1e-6,
                                     taps=taps_of(s, tapped)) for s in (few, many))
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
    assert noise_differences(s, batch, noise, sigma) == pytest.approx(truth.item(), rel=2e-3)
