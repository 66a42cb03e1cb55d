"""Eigenvalues from both ends of a spectrum, and where their vectors are kept."""

import logging

import pytest
import torch
from dense import RELU, TANH, Dense, make

from genmeasure.curvature import lanczos as module
from genmeasure.curvature import memory
from genmeasure.curvature.lanczos import Basis, eigenvalues, lanczos
from genmeasure.curvature.memory import basis_place, free_bytes, readable
from genmeasure.curvature.products import Operator
from genmeasure.errors import InputError

HOST, CUDA = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture(scope="module", params=[RELU, TANH], ids=["relu", "tanh"])
def both(request):
    s = make(request.param)
    return s, Dense(s)


def symmetric(values, seed=0, dtype=torch.float64):
    """A matrix with these eigenvalues in random directions."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))[0]
    return (directions * torch.as_tensor(values, dtype=torch.float64) @ directions.T).to(dtype)


def found(matrix, **given):
    given = {"rtol": 1e-9, "max_products": 200, "seed": 0, **given}
    return eigenvalues(lambda q: matrix @ q, len(matrix), like=matrix, **given)


def test_top_and_bottom_of_the_dense_hessian(both):
    s, dense = both
    truth = torch.linalg.eigvalsh(dense.hessian())
    operator = Operator(s.risk, s.layers)
    ends = eigenvalues(operator, operator.size, k=5, negative=3, rtol=1e-8, max_products=operator.size,
                       like=operator.like, seed=0)
    assert ends.converged
    assert [e.value for e in ends.largest] == pytest.approx(truth.flip(0)[:5].tolist(), rel=1e-7)
    assert [e.value for e in ends.smallest] == pytest.approx(truth[:3].tolist(), rel=1e-6)
    assert max(e.residual for e in (*ends.largest, *ends.smallest)) <= 1e-8 * truth.abs().max()
    assert ends.products <= operator.size


def test_an_early_end_says_so_for_each_eigenvalue(both):
    s, dense = both
    truth = torch.linalg.eigvalsh(dense.hessian())
    operator = Operator(s.risk, s.layers)
    ends = eigenvalues(operator, operator.size, k=4, negative=2, rtol=1e-3, max_products=16, like=operator.like, seed=0)
    assert ends.products == 16
    assert not ends.converged
    for e in (*ends.largest, *ends.smallest):
        assert (truth - e.value).abs().min() <= e.residual + 1e-12
        assert e.converged == (e.residual <= 1e-3 * max(abs(x.value) for x in (*ends.largest, *ends.smallest)))
    assert {e.converged for e in ends.largest} == {True, False}


def test_one_block_is_one_layer(both):
    s, dense = both
    operator = Operator(s.risk, s.layers[1:2])
    ends = eigenvalues(operator, operator.size, k=3, negative=0, rtol=1e-9, max_products=200, like=operator.like,
                       seed=0)
    truth = torch.linalg.eigvalsh(dense.hessian()[dense.rows[1], dense.rows[1]])
    assert [e.value for e in ends.largest] == pytest.approx(truth.flip(0)[:3].tolist(), rel=1e-8)
    assert ends.smallest == ()


def test_no_ghosts_after_two_hundred_steps():
    """Without re-orthogonalisation the outer eigenvalues come again and again."""
    values = torch.cat([torch.linspace(-0.01, 0.01, 380), torch.tensor([1.0, 2, 5, 10, 100])])
    matrix = symmetric(values, dtype=torch.float32)
    start = torch.randn(1, len(values), generator=torch.Generator().manual_seed(0))
    *_, last = lanczos(lambda q: q @ matrix, start, 200)
    ritz = last.ritz()[0][0]
    assert len(ritz) == 200
    for value in (1, 2, 5, 10, 100):
        assert ((ritz - value).abs() < 1e-3 * value).sum() == 1


def test_an_exhausted_space_gives_exact_values_and_each_eigenvalue_once():
    matrix = symmetric([7.0, 7, 7, 3, 0, 0, 0, 0, -2, -2])
    ends = found(matrix, k=10, negative=10)
    assert ends.products == 4
    assert [e.value for e in ends.largest] == pytest.approx([7, 3, 0, -2], abs=1e-12)
    assert [e.value for e in ends.smallest] == pytest.approx([-2, 0, 3, 7], abs=1e-12)
    assert ends.converged
    assert found(torch.zeros(4, 4, dtype=torch.float64)).largest[0].value == 0


def test_more_eigenvalues_than_dimensions_gives_those_that_there_are():
    ends = found(torch.diag(torch.tensor([1.0, 2, 4], dtype=torch.float64)), k=5, negative=4, max_products=3)
    assert [e.value for e in ends.largest] == pytest.approx([4, 2, 1], rel=1e-12)
    assert [e.value for e in ends.smallest] == pytest.approx([1, 2, 4], rel=1e-12)


def test_single_precision_vectors_give_seven_digits():
    matrix = symmetric(torch.linspace(-1, 1, 300).double() ** 3 * 50)
    exact, single = found(matrix, k=4, rtol=1e-5), found(matrix.float(), k=4, rtol=1e-5)
    assert [e.value for e in single.largest] == pytest.approx([e.value for e in exact.largest], rel=1e-5)


@pytest.mark.parametrize(("given", "ending"), [
    ({"k": 0}, "give k=1 or more"),
    ({"k": 3, "negative": 2, "max_products": 4}, "take max_products=5 or more"),
    ({"k": 30, "negative": 2, "max_products": 4}, "take max_products=6 or more"),
])
def test_bad_input(given, ending):
    with pytest.raises(InputError, match=f"{ending}$"):
        found(torch.eye(6, dtype=torch.float64), **given)


@pytest.mark.parametrize("count", [1, module.BLOCK, module.BLOCK + 1, 3 * module.BLOCK])
def test_the_basis_grows_in_blocks_and_orthogonalises_against_all(count):
    most, size = 3 * module.BLOCK + 2, 60
    vectors = torch.linalg.qr(torch.randn(size, count, generator=torch.Generator().manual_seed(0)).double())[0].T
    basis = Basis(most)
    for v in vectors:
        basis.append(v[None])
    assert sum(block.shape[1] for block in basis._blocks) == min(most, -(-count // module.BLOCK) * module.BLOCK)
    w = torch.randn(1, size, generator=torch.Generator().manual_seed(1)).double()
    assert torch.allclose(basis.orthogonalised(w)[0], w[0] - vectors.T @ (vectors @ w[0]), atol=1e-12)


def test_several_starts_share_a_basis_of_their_own(both):
    """As the forms per example use it."""
    matrix = symmetric(range(24))
    starts = torch.randn(3, 24, generator=torch.Generator().manual_seed(2)).double()
    *_, last = lanczos(lambda q: q @ matrix, starts, 20)
    for row, start in enumerate(starts):
        *_, alone = lanczos(lambda q: q @ matrix, start[None], 20)
        assert torch.allclose(alone.ritz()[0][0], last.ritz()[0][row], atol=1e-9)


class OnDevice:
    """What `basis_place` reads of a tensor."""

    def __init__(self, device, bytes_each=4):
        self.device, self._bytes = device, bytes_each

    def element_size(self):
        return self._bytes


@pytest.fixture
def free(monkeypatch):
    """Free bytes by device, to be set."""
    there = {HOST: 10**9, CUDA: 10**8}
    monkeypatch.setattr(memory, "free_bytes", there.__getitem__)
    return there


def test_vectors_stay_on_the_device_where_they_fit_and_go_to_the_host_otherwise(free):
    assert basis_place(100, 10**4, OnDevice(CUDA), parameter="steps") == CUDA
    assert basis_place(100, 125_000, OnDevice(CUDA), parameter="steps") == CUDA  # half of what is free, to the byte
    assert basis_place(100, 125_001, OnDevice(CUDA), parameter="steps") == HOST
    assert basis_place(100, 10**4, OnDevice(HOST), parameter="steps") == HOST
    assert basis_place(100, 10**4, OnDevice(torch.device("mps")), parameter="steps") == HOST


def test_what_fits_nowhere_is_refused_with_the_number_that_fits(free):
    ending = r"but 95.37 MiB on cuda:0 and 953.7 MiB on cpu are free, of which 50% may be used; take max_products=17"
    with pytest.raises(InputError, match=f"{ending}$"):
        basis_place(100, 7_000_000, OnDevice(CUDA), parameter="max_products")
    with pytest.raises(InputError, match=r"on cpu is free, of which 50% may be used; take steps=8$"):
        basis_place(9, 7_000_000, OnDevice(HOST, 8), parameter="steps")
    free[HOST] = 1000
    with pytest.raises(InputError, match="free memory or choose a smaller network$"):
        basis_place(9, 7_000_000, OnDevice(HOST), parameter="steps")


def test_the_number_that_fits_does_fit_and_the_iteration_declares_it(free, caplog):
    matrix = symmetric(range(50))
    free[HOST] = 2 * 50 * 8 * 17 + 5
    with pytest.raises(InputError, match="take max_products=17$"):
        found(matrix, max_products=40)
    with caplog.at_level(logging.INFO, "genmeasure"):
        assert found(matrix, max_products=17, rtol=1e-3).products <= 17
    assert caplog.messages == [f"17 vectors of 50 numbers: {17 * 50 * 8} bytes on cpu, where {free[HOST]} are free"]
    assert found(matrix[:17, :17], max_products=40).products <= 17  # a small matrix needs no more


def test_free_memory_is_a_number_and_knows_the_containers_limit(monkeypatch, tmp_path):
    there = free_bytes(HOST)
    assert there > 2**20
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CONTAINER_LIMIT", limit)
    for text, expected in (("1048576\n", 2**20), ("max\n", None)):
        limit.write_text(text)
        assert free_bytes(HOST) == expected or (expected is None and free_bytes(HOST) > 2**20)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (123, 456))
    assert free_bytes(CUDA) == 123
    assert [readable(n) for n in (12, 2048, 3 * 2**30, 5 * 2**40)] == ["12 bytes", "2 KiB", "3 GiB", "5 TiB"]


def test_a_place_of_its_own_keeps_the_basis_and_the_products_where_they_were():
    matrix, seen = symmetric(range(30)), []

    def product(q):
        seen.append(q.device)
        return q @ matrix
    start = torch.randn(1, 30, generator=torch.Generator().manual_seed(0)).double()
    *_, here = lanczos(product, start, 12)
    *_, there = lanczos(product, start, 12, place=HOST)
    assert torch.equal(here.ritz()[0], there.ritz()[0])
    assert set(seen) == {HOST}
