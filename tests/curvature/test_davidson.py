"""Eigenvalues from a sample of the examples, corrected on all of them."""

import pytest
import torch
from dense import RELU, TANH, Dense, make

from genmeasure.curvature import davidson
from genmeasure.curvature.davidson import davidson_eigenvalues
from genmeasure.curvature.lanczos import eigenvalues
from genmeasure.curvature.products import Operator
from genmeasure.errors import InputError

SETTING = {"rtol": 1e-6, "max_products": 100, "seed": 0}


@pytest.fixture
def sampled(monkeypatch):
    """A sample of eight examples."""
    monkeypatch.setattr(davidson, "EXAMPLES", 8)


@pytest.mark.parametrize(("activation", "wanted"), [(RELU, (1, 1)), (TANH, (2, 1)), (TANH, (2, 0))])
def test_ends_of_the_dense_matrix(sampled, activation, wanted):
    s = make(activation, examples=60)
    operator = Operator(s.risk, s.layers)
    truth = torch.linalg.eigvalsh(Dense(s).hessian())
    assert operator.sampled(8, 0) is not None
    k, negative = wanted
    found = davidson_eigenvalues(operator, k=k, negative=negative, **SETTING)
    assert found.converged
    scale = truth.abs().max().item()
    assert [e.value for e in found.largest] == pytest.approx(truth.flip(0)[:k].tolist(), abs=2e-6 * scale)
    assert [e.value for e in found.smallest] == pytest.approx(truth[:negative].tolist(), abs=2e-6 * scale)
    for e in (*found.largest, *found.smallest):
        assert (truth - e.value).abs().min() <= e.residual + 1e-12 * scale


def test_an_early_end_says_so(sampled):
    operator = Operator((s := make(TANH, examples=60)).risk, s.layers)
    found = davidson_eigenvalues(operator, k=1, negative=1, rtol=1e-12, max_products=16, seed=0)
    assert found.products == 16
    assert not found.converged


def test_few_examples_or_many_eigenvalues_take_lanczos(sampled):
    few, many = make(TANH, examples=12), make(TANH, examples=30)
    for s, k in ((few, 1), (many, 3)):
        operator = Operator(s.risk, s.layers)
        given = {"k": k, "negative": 1, **SETTING}
        assert davidson_eigenvalues(operator, **given) == eigenvalues(operator, operator.size, like=operator.like,
                                                                      **given)


def test_too_few_products_are_refused_here_as_well():
    s = make(TANH)
    with pytest.raises(InputError, match="take max_products=2 or more$"):
        davidson_eigenvalues(Operator(s.risk, s.layers), k=1, negative=1, rtol=0.1, max_products=1, seed=0)


@pytest.mark.parametrize("matrix", ["hessian", "gauss-newton"])
def test_examples_count_as_often_as_told_and_a_sample_is_right_in_the_mean(matrix):
    s = make(TANH, examples=40)
    whole = Operator(s.risk, s.layers, matrix)
    vectors = torch.randn(2, whole.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    single = torch.stack([Operator(s.risk, s.layers, matrix, times=row)(vectors) for row in torch.eye(40).double()])
    times = torch.arange(40.0, dtype=torch.float64) % 3
    mixed = Operator(s.risk, s.layers, matrix, times=times)(vectors)
    assert torch.allclose(mixed, (times[:, None, None] * single).sum(0), rtol=1e-10, atol=1e-14)
    assert torch.allclose(whole(vectors), single.sum(0), rtol=1e-10, atol=1e-12)
    assert torch.allclose(whole(vectors[1]), whole(vectors)[1], rtol=1e-12)
    drawn = torch.stack([(whole.sampled(8, seed).times[:, None, None] * single).sum(0) for seed in range(400)])
    apart = (drawn.mean(0) - whole(vectors)).norm() / (drawn.var(0).sum().sqrt() / 20)
    assert apart < 2
    assert 5 < torch.stack([(whole.sampled(8, seed).times > 0).sum() for seed in range(50)]).double().mean() < 11
