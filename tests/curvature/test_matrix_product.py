"""The product of another library against torch's own, in value, gradient and second derivative."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

import genmeasure as gm
from genmeasure.curvature import matrix_product
from genmeasure.curvature.matrix_product import linear
from genmeasure.curvature.taps import find_taps

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
    for bias in (None, drawn(4), drawn(8)[::2]):
        ours, twin = (derivatives(f, drawn(*shape), weight, bias) for f in (linear, F.linear))
        for a, b in zip(ours, twin, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)  # rounding of float32, second derivatives included
    assert calls


X, W = drawn(3, 5), drawn(4, 5)
LEFT = {
    "float64": lambda: (X.double(), W.double()), "vector": lambda: (X[0], W), "weight is a vector": lambda: (X, W[0]),
    "weight moves": lambda: (X, W.clone().requires_grad_()),
    "bias moves": lambda: (X, W, drawn(4).requires_grad_()), "one bias for all": lambda: (X, W, torch.ones(1)),
    "spread bias": lambda: (X, W, torch.tensor(1.0)), "a row of biases": lambda: (X, W, drawn(1, 4)),
    "no features": lambda: (X[:, :0], W[:, :0]), "sparse": lambda: (X, W.to_sparse_csr())}


@pytest.mark.parametrize("case", LEFT)
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_left_to_torch(case, monkeypatch):
    monkeypatch.setattr(matrix_product, "ONE_DNN", lambda *_: pytest.fail("taken"))
    given = LEFT[case]()
    assert torch.equal(linear(*given), F.linear(*given))


@pytest.mark.parametrize("context", [lambda: torch.autocast("cpu", torch.bfloat16), forward_ad.dual_level,
                                     lambda: torch.backends.mkldnn.flags(enabled=False)])
@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_left_to_torch_within(context, monkeypatch):
    monkeypatch.setattr(matrix_product, "ONE_DNN", lambda *_: pytest.fail("taken"))
    with context():
        assert torch.equal(linear(X, W), F.linear(X, W))


def test_left_to_torch_under_transforms():
    for product in (linear, F.linear):
        assert torch.func.vmap(product, (0, None))(drawn(2, 3, 5), W).shape == (2, 3, 4)
        assert torch.equal(torch.func.jvp(lambda x, f=product: f(x, W), (X,), (X,))[1], F.linear(X, W))


@NEEDED
def test_a_weight_that_changes_before_the_backward_pass_is_noticed():
    x, weight = X.clone().requires_grad_(), W.clone()
    value = linear(x, weight).sum()
    weight.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


class ByKeyword(nn.Module):
    """Names its arguments, and has weights of every kind."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(5, 4), nn.Linear(4, 3)
        self.pooled = nn.Parameter(torch.ones(4))

    def forward(self, x):
        h = torch.tanh(F.linear(input=x, weight=self.first.weight, bias=self.first.bias))
        return self.head(h) + F.linear(h, self.pooled)[:, None]


def test_a_model_may_call_it_as_it_likes():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, start = ByKeyword(), ByKeyword()
    s = gm.subject(net, start, [(drawn(6, 5), torch.arange(6) % 3)], device="cpu")
    assert find_taps(s.risk) is not None
    assert (gm.measure(s, "hessian-trace")["value"] != 0).all()
