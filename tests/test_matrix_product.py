"""The product of another library against torch's own, in value, gradient and second derivative."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import genmeasure as gm
from genmeasure import matrix_product
from genmeasure.curvature.products import batch_hessian_product
from genmeasure.curvature.taps import find_taps
from genmeasure.data.batches import Batch
from genmeasure.layers import forward
from genmeasure.matrix_product import linear

NEEDED = pytest.mark.skipif(matrix_product.ONE_DNN is None, reason="torch was built without oneDNN")


def drawn(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=dtype)


@pytest.fixture
def however_small(monkeypatch):
    monkeypatch.setattr(matrix_product, "LEAST", 0)
    monkeypatch.setattr(matrix_product, "NARROW", 0)
    monkeypatch.setattr(matrix_product, "BLOCKS", (4, 1))
    monkeypatch.setattr(matrix_product, "MULTIPLE", 1)


@pytest.fixture
def calls(monkeypatch):
    """Of oneDNN's product."""
    found, one_dnn = [], matrix_product.ONE_DNN
    monkeypatch.setattr(matrix_product, "ONE_DNN", lambda *args: found.append(args) or one_dnn(*args))
    return found


@pytest.fixture
def untaken(monkeypatch):
    monkeypatch.setattr(matrix_product, "ONE_DNN", lambda *_: pytest.fail("taken"))


def derivatives(product, moving, *given):
    """Value, gradients and second derivatives along a direction, with respect to the arguments that move."""
    given = [None if t is None else t.detach().requires_grad_(moves) for t, moves in zip(given, moving, strict=True)]
    point = [t for t in given if t is not None and t.requires_grad]
    value = product(*given)
    slopes = torch.autograd.grad(value.tanh().square().sum(), point, create_graph=True)
    along = sum((slope * t.detach().cos()).sum() for slope, t in zip(slopes, point, strict=True))
    return [value.detach(), *(s.detach() for s in slopes), *torch.autograd.grad(along, point)]


@NEEDED
@pytest.mark.parametrize("moving", [(True, False, False), (False, True, True), (True, True, True)])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 7, 5)])
def test_equal_to_torch(shape, transposed, moving, however_small, calls):
    weight = drawn(5, 4).T if transposed else drawn(4, 5)
    for bias in (None, drawn(4), drawn(8)[::2]):
        ours, twin = (derivatives(f, moving, drawn(*shape), weight, bias) for f in (linear, F.linear))
        for a, b in zip(ours, twin, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)  # rounding of float32, second derivatives included
    assert len(calls) >= 3 * (1 + sum(moving[:2]))


X, W = drawn(3, 5), drawn(4, 5)
LEFT = {
    "float64": lambda: (X.double(), W.double()), "vector": lambda: (X[0], W), "weight is a vector": lambda: (X, W[0]),
    "one bias for all": lambda: (X, W, torch.ones(1)), "spread bias": lambda: (X, W, torch.tensor(1.0)),
    "a row of biases": lambda: (X, W, drawn(1, 4)), "no features": lambda: (X[:, :0], W[:, :0]),
    "sparse": lambda: (X, W.to_sparse_csr())}


@pytest.mark.parametrize("case", LEFT)
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_left_to_torch(case, monkeypatch, untaken):
    monkeypatch.setattr(matrix_product, "LEAST", 0)
    monkeypatch.setattr(matrix_product, "NARROW", 1)
    given = LEFT[case]()
    assert torch.equal(linear(*given), F.linear(*given))


def test_left_to_torch_where_there_is_little_to_multiply(untaken):
    for rows, width in ((2**12, 15), (63, 2**8)):
        linear(torch.ones(rows, 2**7), torch.ones(width, 2**7))


@NEEDED
def test_taken_where_there_is_much_to_multiply(calls):
    linear(torch.ones(2**9, 2**8), torch.ones(16, 2**8))
    assert len(calls) == 1


@pytest.mark.parametrize("context", [lambda: torch.autocast("cpu", torch.bfloat16), forward_ad.dual_level,
                                     lambda: torch.backends.mkldnn.flags(enabled=False)])
@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_left_to_torch_within(context, however_small, untaken):
    with context():
        assert torch.equal(linear(X, W), F.linear(X, W))


def test_left_to_torch_under_transforms(however_small, untaken):
    for product in (linear, F.linear):
        assert torch.func.vmap(product, (0, None))(drawn(2, 3, 5), W).shape == (2, 3, 4)
        assert torch.equal(torch.func.jvp(lambda x, f=product: f(x, W), (X,), (X,))[1], F.linear(X, W))


@NEEDED
@pytest.mark.parametrize("rows", [1, 31, 32, 300, 2048])
def test_rows_are_taken_in_blocks_of_few_sizes(rows, calls):
    x, weight, bias = drawn(rows, 2**8).double(), drawn(2**9, 2**8).double(), drawn(2**9).double()
    expected = F.linear(x, weight, bias).reshape(1, rows, -1)
    found = linear(x.float().reshape(1, rows, -1), weight.float(), bias.float())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    taken = [given.numel() // 2**8 for given, *_ in calls]
    assert set(taken) <= set(matrix_product.BLOCKS)
    assert sum(taken) == (rows - rows % 32 if rows >= 32 else 0)


@NEEDED
@pytest.mark.parametrize("shape", [(64, 256), (70, 256), (2, 64, 256), (2, 35, 256)])
def test_results_may_be_written_over(shape, calls):
    x, weight = drawn(*shape).requires_grad_(), drawn(256, 256).requires_grad_()
    found, expected = (torch.autograd.grad(product(x, weight).relu_().square().sum(), (x, weight))
                       for product in (linear, F.linear))
    assert calls
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-2)


@NEEDED
@pytest.mark.parametrize("rows", [128, 130])
def test_sums_over_rows_are_of_few_lengths(rows, calls):
    x, weight = drawn(rows, 2**8), drawn(2**9, 2**8).requires_grad_()
    value = linear(x, weight)
    calls.clear()
    (slope,) = torch.autograd.grad(value.sum(), weight)
    torch.testing.assert_close(slope, x.sum(0).expand(2**9, -1), rtol=1e-4, atol=1e-4)
    assert bool(calls) == (rows == 128)


@NEEDED
def test_several_gradients_may_be_taken_at_once(however_small, calls):
    x, weight = drawn(2, 3, 5).requires_grad_(), W.clone().requires_grad_()
    value = linear(x, weight).tanh()
    assert calls
    directions = drawn(2, *value.shape)
    together = torch.autograd.grad(value, (x, weight), directions, is_grads_batched=True, retain_graph=True)
    for i, direction in enumerate(directions):
        alone = torch.autograd.grad(value, (x, weight), direction, retain_graph=True)
        torch.testing.assert_close(tuple(some[i] for some in together), alone)


@NEEDED
def test_a_weight_that_changes_before_the_backward_pass_is_noticed(however_small):
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


def test_a_model_may_call_it_as_it_likes(however_small, monkeypatch):
    monkeypatch.setattr(matrix_product, "LARGE", 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, start = ByKeyword(), ByKeyword()
    s = gm.subject(net, start, [(drawn(6, 5), torch.arange(6) % 3)], device="cpu")
    assert find_taps(s.risk) is not None
    assert (gm.measure(s, "hessian-trace")["value"] != 0).all()


class Several(nn.Module):
    """Attention, transformers' order of weights, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.turned, self.bias = nn.Parameter(drawn(8, 6)), nn.Parameter(drawn(6))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        h = self.attention(x, x, x, need_weights=False)[0].flatten(0, 1)
        return self.head(torch.tanh(torch.addmm(self.bias, h, self.turned))).reshape(len(x), -1, 3).mean(1)


def several(**how):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Several()
    return gm.subject(net, Several(), [(drawn(6, 4, 8), torch.arange(6) % 3)], device="cpu", **how)


@NEEDED
def test_networks_are_called_with_it(however_small, calls, monkeypatch):
    monkeypatch.setattr(matrix_product, "LARGE", 1)
    risk, exact = several().risk, several(dtype="float64").risk
    batch, other = (r.place(next(iter(r.batches))) for r in (risk, exact))
    calls.clear()
    with torch.no_grad():
        found = risk.outputs({}, batch)
    assert list(dict.fromkeys(tuple(weight.shape) for _, weight, *_ in calls)) == [(24, 8), (8, 8), (6, 8), (3, 6)]
    with torch.no_grad():
        torch.testing.assert_close(found.double(), exact.outputs({}, other), rtol=1e-5, atol=1e-5)
    calls.clear()
    slopes, expected = risk.batch_gradient(batch), exact.batch_gradient(other)
    assert len(calls) > 8
    v = {k: torch.cos(w) for k, w in risk.weights.items()}
    products = batch_hessian_product(risk, batch, v)
    others = batch_hessian_product(exact, other, {k: w.double() for k, w in v.items()})
    for k in expected:
        torch.testing.assert_close(slopes[k].double(), expected[k], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(products[k].double(), others[k], rtol=1e-4, atol=1e-4)


class Watching(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.add(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("how", "large"), [({"dtype": "float64"}, 1), ({"dtype": "bfloat16"}, 1), ({}, 2**14)])
def test_networks_of_another_precision_and_small_ones_are_called_without_it(how, large, however_small, monkeypatch):
    monkeypatch.setattr(matrix_product, "LARGE", large)
    risk = several(**how).risk
    monkeypatch.setattr(matrix_product, "ONE_DNN", lambda *_: pytest.fail("taken"))
    risk.outputs({}, risk.place(next(iter(risk.batches))))


def test_a_mode_that_watches_sees_the_operations(however_small, monkeypatch):
    monkeypatch.setattr(matrix_product, "LARGE", 1)
    risk = several().risk
    monkeypatch.setattr(matrix_product, "ONE_DNN", lambda *_: pytest.fail("taken"))
    with Watching() as watching:
        risk.outputs({}, risk.place(next(iter(risk.batches))))
    assert {F.linear, torch.addmm} <= watching.seen


@NEEDED
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # inside torch
@pytest.mark.parametrize("compiled", [lambda net: torch.compile(net, backend="eager"),
                                      lambda net: net.compile(backend="eager") or net,
                                      lambda net: nn.Sequential(torch.compile(net, backend="eager"))])
def test_compiled_networks_are_called_without_it(compiled):
    net = nn.Sequential(nn.Linear(256, 256))
    assert isinstance(matrix_product.faster_products(net), TorchFunctionMode)
    assert not isinstance(matrix_product.faster_products(compiled(net)), TorchFunctionMode)


@NEEDED
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # inside torch
def test_a_network_may_call_what_is_compiled():
    inner = nn.Linear(256, 256)
    call = torch.compile(inner.forward, backend="eager", fullgraph=True)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return call(x)
    x = drawn(64, 256)
    torch.testing.assert_close(forward(Outer(), Batch((x,), torch.zeros(64))), inner(x), rtol=1e-4, atol=1e-4)


@NEEDED
@pytest.mark.parametrize("width", [256, 128])
def test_parts_that_are_computed_again_save_the_same(width):
    """`checkpoint` runs a part of the network again in the backward pass, outside of the mode."""
    part = nn.Linear(256, width)

    class Again(nn.Module):
        def __init__(self, again):
            super().__init__()
            self.first, self.part, self.again = nn.Linear(256, 256), part, again
            self.first.load_state_dict({"weight": drawn(256, 256) / 16, "bias": drawn(256)})

        def forward(self, x):
            h = torch.tanh(self.first(x))
            return checkpoint(self.part, h, use_reentrant=False) if self.again else self.part(h)
    slopes = []
    for again in (True, False):
        net = Again(again)
        forward(net, Batch((drawn(64, 256),), torch.zeros(64))).square().sum().backward()
        slopes.append(net.first.weight.grad)
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-3)


@NEEDED
def test_transforms_over_what_else_a_network_holds():
    x, weight = drawn(64, 256), drawn(256, 256)
    found = torch.func.vmap(lambda scale: scale * linear(x, weight))(drawn(2))
    torch.testing.assert_close(found, drawn(2)[:, None, None] * F.linear(x, weight))


@NEEDED
def test_windows_that_overlap_are_left_to_torch(untaken):
    band = drawn(511).unfold(0, 256, 1)
    torch.testing.assert_close(linear(drawn(64, 256), band), F.linear(drawn(64, 256), band))


@NEEDED
def test_a_weight_may_change_where_its_input_has_no_gradient():
    weight = drawn(256, 256).requires_grad_()
    value = linear(drawn(64, 256), weight)
    with torch.no_grad():
        weight.mul_(2)
    value.sum().backward()
    torch.testing.assert_close(weight.grad, drawn(64, 256).sum(0).expand(256, -1), rtol=1e-4, atol=1e-4)
