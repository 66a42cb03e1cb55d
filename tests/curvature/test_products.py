"""Products with the Hessian and the Gauss-Newton matrix against dense ones in float64."""

import pytest
import torch
from dense import RELU, TANH, Dense, make, small_net_with
from torch import nn
from torch.func import hessian

from genmeasure.curvature import products as module
from genmeasure.curvature.products import (
    Operator,
    batch_gauss_newton_product,
    gauss_newton_product,
    hessian_product,
    output_hessian_product,
)
from genmeasure.data.batches import Batches
from genmeasure.errors import InputError
from genmeasure.risk import Risk
from genmeasure.subject import subject


@pytest.fixture(scope="module", params=[RELU, TANH], ids=["relu", "tanh"])
def both(request):
    s = make(request.param)
    return s, Dense(s)


def dense_gauss_newton(s):
    """Mean over examples of J' A J for all layers, [d, d]."""
    dense = Dense(s)
    jacobians = torch.cat([dense.output_jacobian(x) for x in s.layers], 2)
    outputs = dense.outputs(dense.point)
    curved = [hessian(lambda f, y=y: s.loss(f[None], y[None])[0])(f) for f, y in zip(outputs, dense.y, strict=True)]
    return torch.einsum("bki,bkl,blj->ij", jacobians, torch.stack(curved), jacobians) / len(outputs) * s.risk.scale


def directions(size, count=3):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_both_matrices_over_all_layers_and_over_one(both):
    s, dense = both
    matrices = {"hessian": dense.hessian(), "gauss-newton": dense_gauss_newton(s)}
    for name, matrix in matrices.items():
        for layers, rows in ((s.layers, slice(None)), (s.layers[1:2], dense.rows[1])):
            operator = Operator(s.risk, layers, name)
            block = matrix[rows, rows]
            assert operator.size == len(block)
            for v in directions(operator.size):
                assert torch.allclose(operator(v), block @ v, rtol=1e-9, atol=1e-12)


def test_blocks_of_a_relu_network_are_the_same_and_the_whole_matrices_are_not(both):
    s, dense = both
    v = directions(dense.sizes[0], 1)[0]
    one, other = (Operator(s.risk, s.layers[:1], kind)(v) for kind in module.BATCH_PRODUCTS)
    assert torch.allclose(one, other, atol=1e-12) == (s.model.activation is RELU)
    w = directions(len(dense.point), 1)[0]
    assert not torch.allclose(Operator(s.risk, s.layers)(w), Operator(s.risk, s.layers, "gauss-newton")(w), rtol=1e-2)


def test_hessian_is_gauss_newton_plus_residual(both):
    s, dense = both
    vectors = dict(zip([x.name for x in s.layers], (v.reshape(shape) for v, shape in zip(
        directions(len(dense.point), 1)[0].split(dense.sizes), dense.shapes, strict=True)), strict=True))
    residual = s.risk.engine.sum(lambda b: module.batch_hessian_product(s.risk, b, vectors, s.risk.residual_losses),
                                 s.risk.batches)
    whole, part = hessian_product(s.risk, vectors), gauss_newton_product(s.risk, vectors)
    for k in vectors:
        assert torch.allclose(part[k] + residual[k] / s.train.size, whole[k], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", sorted(module.BATCH_PRODUCTS))
def test_a_ragged_batch_counts_by_its_examples(kind):
    ragged, whole = make(TANH, batch_size=48, examples=64), make(TANH, batch_size=64, examples=64)
    assert ragged.train.lengths == [48, 16]
    for v in directions(Operator(whole.risk, whole.layers).size):
        one, other = (Operator(s.risk, s.layers, kind)(v) for s in (ragged, whole))
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-13)


class Rounded(torch.autograd.Function):
    """tanh with a derivative in reverse only."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return slope * (1 - torch.tanh(x) ** 2)


def test_operations_without_forward_mode_go_backward_twice():
    s, t = make(Rounded.apply), make(TANH)
    for v in directions(Operator(t.risk, t.layers).size):
        one, other = (Operator(x.risk, x.layers, "gauss-newton")(v) for x in (s, t))
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-13)
    assert s.risk.passes > t.risk.passes == pytest.approx(1 + 3 * 5.0)  # a look at the examples and a product


def test_output_products_never_make_the_matrix_of_many_classes():
    classes = 3000  # A of one example: 72 MB
    risk = make(TANH).risk
    outputs, moved = (torch.randn(2, classes, generator=torch.Generator().manual_seed(i)).double() for i in (0, 1))
    p = outputs.softmax(1)
    expected = p * moved - p * (p * moved).sum(1, keepdim=True)
    found = output_hessian_product(risk, outputs, torch.tensor([5, 7]), moved)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-15)


def linear(outputs, targets):
    return outputs[:, 0]


def quartic(outputs, targets):
    return outputs[:, 0] ** 4


def test_any_loss():
    s = small_net_with(quartic)
    operator = Operator(s.risk, s.layers, "gauss-newton")
    matrix = torch.stack([operator(v) for v in torch.eye(operator.size, dtype=torch.float64)])
    assert torch.allclose(matrix, matrix.T, atol=1e-12)
    assert torch.allclose(matrix, dense_gauss_newton(s), rtol=1e-9, atol=1e-12)
    flat = small_net_with(linear)
    assert (Operator(flat.risk, flat.layers, "gauss-newton")(operator.like.new_ones(operator.size)) == 0).all()
    assert Operator(flat.risk, flat.layers)(operator.like.new_ones(operator.size)).abs().max() > 0
    head = Operator(flat.risk, flat.layers[1:])  # the loss is linear in it
    assert (head(operator.like.new_ones(head.size)) == 0).all()


class Ignoring(nn.Module):
    """A layer that runs and whose output is not used."""

    def __init__(self):
        super().__init__()
        self.idle, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        self.idle(x)
        return self.head(x)


def test_a_weight_that_the_loss_does_not_use_has_a_block_of_zeros():
    net = Ignoring().double()
    data = Batches.from_arrays(torch.ones(4, 3).double(), torch.tensor([0, 1, 0, 1]))
    s = subject(net, net, data, dtype="float64", device="cpu")
    for kind in module.BATCH_PRODUCTS:
        for layers in (s.layers, s.layers[:1]):
            operator = Operator(s.risk, layers, kind)
            assert (operator(torch.ones(operator.size, dtype=torch.float64))[:9] == 0).all()


def test_sequences_carry_the_scale_of_their_tokens(both):
    s, _ = both
    operator = Operator(s.risk, s.layers, "gauss-newton")
    v = directions(operator.size, 1)[0]
    once = operator(v)
    scaled = Risk(s.model, s.loss, s.layers, s.train, s.engine)
    scaled.scale = 2.5
    assert torch.allclose(Operator(scaled, s.layers, "gauss-newton")(v), 2.5 * once, rtol=1e-12)


def test_gradients_are_not_left_behind_and_the_cost_is_counted(both):
    s, _ = both
    before = s.risk.passes
    vectors = {x.name: torch.ones_like(s.weight(x)) for x in s.layers}
    found = batch_gauss_newton_product(s.risk, next(iter(s.train)), vectors)
    assert s.risk.passes - before == pytest.approx(5 * 5 / 12)
    assert not any(t.requires_grad for t in found.values())
    assert all(p.grad is None for p in s.model.parameters())


def test_an_unknown_matrix_names_the_nearest(both):
    with pytest.raises(InputError, match="did you mean 'hessian'\\?$"):
        Operator(both[0].risk, both[0].layers, "hesian")
