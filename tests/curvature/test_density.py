"""Stochastic Lanczos quadrature: exact over a complete design, calibrated over many seeds."""

import math

import pytest
import scipy.linalg
import torch
from dense import RELU, TANH, Dense, assert_calibrated, make

from genmeasure.curvature import memory
from genmeasure.curvature.density import DEGREES, Spectrum, probe, quadrature, round_up, spectrum
from genmeasure.curvature.products import Operator
from genmeasure.errors import InputError

SEEDS = 200


def symmetric(size=40, seed=0):
    """A matrix with eigenvalues of both signs, the largest far from the others."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    values = torch.cat([torch.linspace(-1, 2, size - 2), torch.tensor([5.0, 9.0])]).double()
    return directions * values @ directions.T, values


def found(matrix, **given):
    given = {"probes": 6, "steps": 12, "rtol": 0.0, "max_probes": 100, "seed": 0, **given}
    return spectrum(lambda q: matrix @ q, len(matrix), like=matrix, **given)


def hadamard(size):
    """Signs [columns, size] whose outer products average to the identity."""
    whole = 1 << (size - 1).bit_length()
    return torch.from_numpy(scipy.linalg.hadamard(whole)).double()[:size].T


@pytest.mark.parametrize("activation", [RELU, TANH], ids=["relu", "tanh"])
@pytest.mark.parametrize("layers", [slice(None), slice(0, 1)], ids=["all", "block"])
def test_a_complete_design_makes_moments_exact(activation, layers):
    s = make(activation)
    dense = Dense(s)
    operator = Operator(s.risk, s.layers[layers])
    matrix = dense.hessian()[:operator.size, :operator.size]
    drawn = [quadrature(operator, z, 3) for z in hadamard(operator.size)]
    whole = Spectrum(*(torch.stack(part) for part in zip(*drawn, strict=True)))
    for degree in DEGREES:  # three steps are exact up to the fifth
        truth = torch.linalg.matrix_power(matrix, degree).trace().item() / operator.size
        assert whole.moment(degree).value == pytest.approx(truth, rel=1e-9, abs=1e-14)


def test_enough_steps_make_every_function_exact_over_the_design():
    matrix, values = symmetric(16)
    drawn = [quadrature(lambda q: matrix @ q, z, 16) for z in hadamard(16)]
    whole = Spectrum(*(torch.stack(part) for part in zip(*drawn, strict=True)))
    assert whole.fraction_below(-0.5).value == pytest.approx((values < -0.5).double().mean().item(), abs=1e-10)
    at, width = 1.3, 0.2
    truth = (torch.exp(-0.5 * ((values - at) / width) ** 2) / (width * math.sqrt(2 * math.pi))).mean().item()
    assert whole.density(at, width).value == pytest.approx(truth, rel=1e-9)


def test_one_probe_is_the_form_of_its_start_and_its_weights_add_up_to_one():
    matrix, _ = symmetric()
    z = probe("p", 0, 0, 40).double()
    nodes, weights = quadrature(lambda q: matrix @ q, z, 6)
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    for degree in range(12):  # up to 2 * 6 - 1
        truth = (z @ torch.linalg.matrix_power(matrix, degree) @ z).item() / 40
        assert (weights * nodes**degree).sum().item() == pytest.approx(truth, rel=1e-9)


def test_an_exhausted_space_is_padded_with_weights_of_zero():
    matrix = torch.diag(torch.tensor([3.0, 3, 3, 0, 0, 0, 0, 0])).double()
    result = found(matrix, steps=7)
    assert (result.weights > 0).sum(1).tolist() == [2] * 6
    assert result.range == pytest.approx((0, 3), abs=1e-12)
    assert result.moment(4).value == pytest.approx(3**4 * 3 / 8, rel=1e-12)
    assert result.moment(4).stderr == pytest.approx(0, abs=1e-12)
    nothing = found(torch.zeros(8, 8).double())
    assert nothing.grid()[0] == 1
    assert nothing.moment(2).value == 0


def test_probes_are_signs_of_length_root_d_that_follow_purpose_seed_and_number():
    z = probe("p", 0, 0, 1000)
    assert set(z.tolist()) == {-1, 1}
    assert torch.equal(z, probe("p", 0, 0, 1000))
    for other in (("q", 0, 0), ("p", 1, 0), ("p", 0, 1)):
        assert abs((z.double() @ probe(*other, 1000).double()).item()) < 150


def test_the_kernel_integrates_to_one_on_the_grid():
    matrix, _ = symmetric()
    result = found(matrix)
    for width in (None, 0.03, 0.5):
        chosen, points = result.grid(width)
        assert chosen == width or width is None
        assert sum(result.density(x, chosen).value for x in points) * chosen == pytest.approx(1, abs=2e-4)
        assert points[0] <= result.range[0] - 4 * chosen * (1 - 1e-9)
        assert points[-1] >= result.range[1] + 4 * chosen * (1 - 1e-9)


def test_the_grid_is_the_same_for_every_seed_and_in_round_numbers():
    matrix, _ = symmetric()
    grids = [found(matrix, seed=seed).grid() for seed in range(5)]
    assert {width for width, _ in grids} == {0.1}
    assert all(f"{x:.9g}" == f"{round(x, 1):.9g}" for _, points in grids for x in points)
    assert len({tuple(points) for _, points in grids}) <= 3
    assert [round_up(x) for x in (0, 0.1, 0.11, 2.1e-7, 999, 1000, 1e-300)] == [1, 0.1, 0.2, 5e-7, 1000, 1000, 1e-300]


def test_the_stop_rule_waits_for_a_standard_error_that_means_something():
    matrix, _ = symmetric(200)
    assert len(found(matrix, probes=4).nodes) == 4
    assert len(found(matrix, probes=4, rtol=10.0).nodes) == 21
    precise = found(matrix, probes=4, rtol=0.05, max_probes=2000)
    assert 21 < len(precise.nodes) < 2000
    for degree in (1, 2):
        assert precise.moment(degree).stderr <= 0.05 * abs(precise.moment(degree).value)
    assert len(found(matrix, probes=4, rtol=1e-9, max_probes=30).nodes) == 30
    assert len(found(matrix, probes=40, rtol=1e-9, max_probes=30).nodes) == 40


def test_a_ragged_batch_changes_nothing():
    ragged, whole = make(TANH, batch_size=48, examples=64), make(TANH, batch_size=64, examples=64)
    one, other = (spectrum(operator := Operator(s.risk, s.layers), operator.size, probes=2, steps=6, rtol=0.0,
                           max_probes=2, like=operator.like, seed=0) for s in (ragged, whole))
    assert torch.allclose(one.nodes, other.nodes, rtol=1e-8, atol=1e-10)
    assert torch.allclose(one.weights, other.weights, rtol=1e-6, atol=1e-10)


def test_single_precision_is_enough_for_the_moments():
    matrix, _ = symmetric(300)
    exact, single = found(matrix), found(matrix.float())
    for degree in DEGREES:
        assert single.moment(degree).value == pytest.approx(exact.moment(degree).value, rel=1e-4)


@pytest.mark.parametrize(("given", "ending"), [
    ({"probes": 1}, "give probes=2 or more"),
    ({"steps": 2}, "give steps=3 or more"),
])
def test_bad_input(given, ending):
    with pytest.raises(InputError, match=f"{ending}$"):
        found(symmetric()[0], **given)


def test_memory_and_points_are_bounded(monkeypatch):
    matrix, _ = symmetric()
    with pytest.raises(InputError, match="take width=0.005 or more$"):
        found(matrix).grid(1e-4)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 40 * 8 * 2 * 9)
    with pytest.raises(InputError, match="take steps=9$"):
        found(matrix)
    assert len(found(matrix, steps=9).nodes) == 6


@pytest.mark.slow
def test_moments_and_densities_are_calibrated():
    """Over many seeds, (estimate - truth) / stderr has spread one and its 95 % interval covers the truth."""
    matrix, values = symmetric()
    width = 0.5
    truths = [(values**degree).mean().item() for degree in DEGREES]
    kernel = torch.exp(-0.5 * ((values[:, None] - torch.tensor([0.0, 1.0])) / width) ** 2)
    truths += (kernel / (width * math.sqrt(2 * math.pi))).mean(0).tolist()
    z = []
    for seed in range(SEEDS):
        result = found(matrix, seed=seed, probes=40, steps=16)
        estimates = [result.moment(degree) for degree in DEGREES] + [result.density(x, width) for x in (0.0, 1.0)]
        z.append([(e.value - truth) / e.stderr for e, truth in zip(estimates, truths, strict=True)])
    assert_calibrated(z)
