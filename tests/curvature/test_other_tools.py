"""ARPACK and PyHessian as alternative routes, and the guards around PyHessian's defects."""

import sys

import pytest
import small
import torch
from dense import RELU, TANH, Dense, make, small_net_with
from torch import nn

import genmeasure as gm
from genmeasure.curvature import memory
from genmeasure.curvature.other_tools import eigsh_eigenvalues, pyhessian_eigenvalues, pyhessian_probes
from genmeasure.curvature.products import Operator
from genmeasure.data.batches import Batches
from genmeasure.errors import InputError


@pytest.fixture(scope="module", params=[RELU, TANH], ids=["relu", "tanh"])
def both(request):
    s = make(request.param)
    return s, Dense(s)


def eigsh(matrix, **given):
    given = {"k": 1, "negative": 1, "rtol": 1e-10, "max_products": 500, "seed": 0, **given}
    return eigsh_eigenvalues(lambda q: matrix @ q, len(matrix), like=matrix, **given)


def test_eigsh_agrees_with_the_dense_hessian(both):
    s, dense = both
    truth = torch.linalg.eigvalsh(dense.hessian())
    operator = Operator(s.risk, s.layers)
    ends = eigsh_eigenvalues(operator, operator.size, k=4, negative=2, rtol=1e-10, max_products=400,
                             like=operator.like, seed=0)
    assert ends.converged
    assert [e.value for e in ends.largest] == pytest.approx(truth.flip(0)[:4].tolist(), rel=1e-8)
    assert [e.value for e in ends.smallest] == pytest.approx(truth[:2].tolist(), rel=1e-8)
    assert 0 < max(e.residual for e in ends.largest) < 1e-8 * truth[-1]
    assert s.risk.passes >= 9 * ends.products


def test_eigsh_finds_an_end_at_zero_and_an_operator_of_zeros():
    values = torch.cat([torch.zeros(20), torch.linspace(0.5, 5, 20)]).double()
    ends = eigsh(torch.diag(values), k=2, negative=1)
    assert ends.smallest[0].value == pytest.approx(0, abs=1e-9)
    assert [e.value for e in ends.largest] == pytest.approx(values.flip(0)[:2].tolist(), rel=1e-9)
    assert ends.converged
    nothing = eigsh(torch.zeros(9, 9, dtype=torch.float64), k=2)
    assert [e.value for e in nothing.largest] == [0, 0]
    assert nothing.converged


def test_eigsh_says_what_it_cannot(monkeypatch):
    matrix = torch.diag(torch.linspace(0, 1, 300).double() ** 0.1)
    with pytest.raises(InputError, match="or route=lanczos, which says how far it came$"):
        eigsh(matrix, k=3, max_products=25)
    with pytest.raises(InputError, match="take route=lanczos$"):
        eigsh(torch.eye(4, dtype=torch.float64), k=4)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 300 * 8 * 2 * 9)
    with pytest.raises(InputError, match="take max_products=9$"):
        eigsh(matrix, k=3)


def test_probes_of_pyhessian_agree_with_the_exact_traces(both):
    s, dense = both
    blocks = torch.stack([dense.hessian()[r, r].trace() for r in dense.rows])
    forms = pyhessian_probes(s.risk, 300, 0)
    assert forms.shape == (300, len(s.layers))
    assert forms.dtype == torch.float64
    stderr = forms.std(0) / 300**0.5
    assert (stderr > 0).all()
    assert ((forms.mean(0) - blocks).abs() < 4 * stderr).all()
    total = forms.sum(1)
    assert abs(total.mean() - blocks.sum()) < 4 * total.std() / 300**0.5


def test_the_seed_is_an_argument_and_the_cost_is_counted(both):
    s, _ = both
    before = s.risk.passes
    one = pyhessian_probes(s.risk, 3, 0)
    assert s.risk.passes - before == pytest.approx(3 * 9)
    assert torch.equal(one, pyhessian_probes(s.risk, 3, 0))
    assert not torch.equal(one, pyhessian_probes(s.risk, 3, 1))
    assert torch.equal(one, pyhessian_probes(s.risk, 5, 0)[:3])


def test_a_ragged_batch_counts_by_its_examples():
    ragged, whole = (make(TANH, batch_size=size, examples=64) for size in (48, 64))
    one, other = (pyhessian_probes(s.risk, 4, 0) for s in (ragged, whole))
    assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_a_negative_trace_takes_every_probe():
    """PyHessian's own rule stops such a trace after two."""
    s = small_net_with(negative)
    forms = pyhessian_probes(s.risk, 40, 0)
    assert len(forms) == 40
    assert forms.sum(1).mean() < 0


def negative(outputs, targets):
    return -(outputs**2).sum(1)


def linear(outputs, targets):
    return outputs.sum(1)


class Ignoring(nn.Module):
    """A layer that runs and whose output is not used, in front of attention, in training mode."""

    def __init__(self):
        super().__init__()
        self.idle, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        self.idle(x[:, 0])
        return self.head(self.dropout(nn.functional.scaled_dot_product_attention(x, x, x)).mean(1))


def test_unused_weights_give_zeros_and_attention_works():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, x = Ignoring(), torch.randn(6, 3, 4)
    s = gm.subject(net, net, Batches.from_arrays(x, torch.tensor([0, 1] * 3), batch_size=4), device="cpu")
    forms = pyhessian_probes(s.risk, 200, 0)
    assert (forms[:, 0] == 0).all()
    operator = Operator(s.risk, s.layers[1:])
    exact = sum((operator(v) @ v).item() for v in torch.eye(operator.size))
    assert abs(forms[:, 1].mean() - exact) < 4 * forms[:, 1].std() / 200**0.5
    ends = pyhessian_eigenvalues(s.risk, 1, rtol=1e-3, max_products=100, seed=0)
    assert ends.largest[0].converged


def test_a_loss_that_is_linear_in_some_weights():
    """The head has a cross-layer block and none of its own; alone, nothing is left for PyHessian."""
    s = small_net_with(linear)
    forms = pyhessian_probes(s.risk, 200, 0)
    assert abs(forms[:, 1].mean()) < 4 * forms[:, 1].std() / 200**0.5
    with pytest.raises(InputError, match="take route=lanczos$"):
        pyhessian_eigenvalues(s.risk, 1, layers=s.layers[1:], rtol=1e-3, max_products=10, seed=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_of_the_callers_is_touched(dtype):
    start, end = small.pair("residual")
    end.stem.eval()
    end(small.images()[0]).sum().backward()
    s = gm.subject(end, start, small.batches(), device="cpu", dtype=dtype)
    weights = {k: v.clone() for k, v in s.model.state_dict().items()}
    grads, modes = [p.grad.clone() for p in end.parameters()], [m.training for m in end.modules()]
    state = torch.get_rng_state()
    assert pyhessian_probes(s.risk, 2, 0).isfinite().all()
    assert pyhessian_eigenvalues(s.risk, 1, rtol=1e-2, max_products=30, seed=0).largest
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None and not p.requires_grad for p in s.model.parameters())
    assert not any(m.training for m in s.model.modules())
    assert all(torch.equal(a, b) for a, b in zip(weights.values(), s.model.state_dict().values(), strict=True))
    assert all(torch.equal(p.grad, g) for p, g in zip(end.parameters(), grads, strict=True))
    assert [m.training for m in end.modules()] == modes
    with torch.no_grad():
        assert pyhessian_probes(s.risk, 2, 0).isfinite().all()


def test_the_top_eigenvalue_of_pyhessian_agrees_with_the_dense_hessian():
    s = make(TANH)
    dense = Dense(s)
    for layers, rows in ((None, slice(None)), (s.layers[2:], dense.rows[2])):
        truth = torch.linalg.eigvalsh(dense.hessian()[rows, rows])
        ends = pyhessian_eigenvalues(s.risk, 1, layers=layers, rtol=1e-4, max_products=800, seed=0)
        assert ends.largest[0].value == pytest.approx(truth[-1].item(), rel=1e-4)
        assert ends.largest[0].residual <= 1e-2 * truth[-1]
        assert ends.smallest == ()


def test_several_eigenvalues_of_pyhessian_where_all_are_positive():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, x = nn.Linear(5, 3), torch.randn(30, 5)
    s = gm.subject(net, net, Batches.from_arrays(x, torch.arange(30) % 3, batch_size=8), dtype="float64", device="cpu")
    operator = Operator(s.risk, s.layers)
    matrix = torch.stack([operator(v) for v in torch.eye(15, dtype=torch.float64)])
    truth = torch.linalg.eigvalsh(matrix).flip(0)
    ends = pyhessian_eigenvalues(s.risk, 3, rtol=1e-5, max_products=3000, seed=0)
    assert [e.value for e in ends.largest] == pytest.approx(truth[:3].tolist(), rel=1e-4)
    assert ends.products < 3000
    rough = pyhessian_eigenvalues(s.risk, 2, rtol=1e-4, max_products=4, seed=0)
    assert not rough.converged
    for e in rough.largest:
        assert (truth - e.value).abs().min() <= e.residual + 1e-9


def test_a_negative_eigenvalue_of_largest_modulus_is_refused():
    with pytest.raises(InputError, match="so they are not the largest; take route=lanczos$"):
        pyhessian_eigenvalues(small_net_with(negative).risk, 1, rtol=1e-3, max_products=100, seed=0)


def test_inputs_that_pyhessian_cannot_take():
    start, end = small.pair("keyword")
    s = gm.subject(end, start, small.batches(key="pixel_values"), device="cpu")
    with pytest.raises(InputError, match="hold inputs by name, and PyHessian passes one tensor to the model; "
                                         "take route=hutchinson$"):
        pyhessian_probes(s.risk, 2, 0)
    with pytest.raises(InputError, match="take route=lanczos$"):
        pyhessian_eigenvalues(s.risk, 1, rtol=1e-3, max_products=10, seed=0)


def test_bad_numbers(both):
    s, _ = both
    with pytest.raises(InputError, match="give 1 or more$"):
        pyhessian_probes(s.risk, 0, 0)
    with pytest.raises(InputError, match="take max_products=5 or more$"):
        pyhessian_eigenvalues(s.risk, 5, rtol=1e-3, max_products=4, seed=0)
    with pytest.raises(InputError, match="take route=lanczos$"):
        pyhessian_eigenvalues(s.risk, 500, rtol=1e-3, max_products=4000, seed=0)


def test_a_missing_package_says_how_to_get_it(both, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyhessian", None)
    with pytest.raises(InputError, match=r"install it with `pip install \"genmeasure\[pyhessian\]\"`$"):
        pyhessian_probes(both[0].risk, 2, 0)
