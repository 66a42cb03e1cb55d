"""The product of another library against torch's own, in value, gradient and second derivative."""

import pytest
import torch
import torch.nn.functional as F

from genmeasure.curvature import matrix_product
from genmeasure.curvature.matrix_product import linear

NEEDED = pytest.mark.skipif(matrix_product.ONE_DNN is None, reason="torch was built without oneDNN")


def drawn(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=dtype)


def derivatives(product, x, weight, bias):
    x = x.clone().requires_grad_()
    value = product(x, weight, bias)
    (slope,) = torch.autograd.grad(value.tanh().square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((slope * x.detach()).sum(), x)
    return value.detach(), slope.detach(), second


@NEEDED
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 7, 5)])
def test_equal_to_torch(shape, transposed, monkeypatch):
    calls = []
    one_dnn = matrix_product.ONE_DNN
    monkeypatch.setattr(matrix_product, "ONE_DNN", lambda *args: calls.append(args) or one_dnn(*args))
    weight = drawn(5, 4).T if transposed else drawn(4, 5)
    for bias in (None, drawn(4)):
        ours, twin = (derivatives(f, drawn(*shape), weight, bias) for f in (linear, F.linear))
        for a, b in zip(ours, twin, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    assert calls


@pytest.mark.parametrize("case", ["float64", "weight moves", "vector"])
def test_left_to_torch(case, monkeypatch):
    monkeypatch.setattr(matrix_product, "ONE_DNN", lambda *_: pytest.fail("taken"))
    x, weight = drawn(3, 5), drawn(4, 5)
    if case == "float64":
        x, weight = x.double(), weight.double()
    elif case == "weight moves":
        weight.requires_grad_()
    else:
        x = x[0]
    assert torch.equal(linear(x, weight), F.linear(x, weight))
