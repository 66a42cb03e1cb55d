"""Weight noise: distributions by their formulas, schedules, memory, the clean gradient, running statistics."""

import copy
import itertools
import math

import pytest
import torch
from quadratic import Quadratic
from torch import nn

from genmeasure.errors import InputError
from genmeasure.training.algorithm import get_algorithm
from genmeasure.training.context import Context
from genmeasure.training.pieces import Closure
from genmeasure.training.probes.distributions import (
    DISTRIBUTIONS,
    FAIR_COINS,
    centred,
    difference,
    standard_noise,
)
from genmeasure.training.probes.noise import Noise
from genmeasure.training.probes.noise_over_time import NoiseOverTime

FOURTH_MOMENTS = {"normal": 3, "laplace": 6, "uniform": 9 / 5, "binomial": 5 / 2, "rademacher": 1}


def moments(values):
    return [(values ** k).mean().item() for k in (1, 2, 4)]


def test_formulas_have_mean_zero_and_variance_one():
    assert moments(torch.tensor(FAIR_COINS)) == [0, 1, 2.5]  # all sixteen outcomes of four coins
    coins = [sum(four) - 2 for four in itertools.product((0, 1), repeat=4)]
    assert sorted(coins) == sorted(FAIR_COINS)
    ends = centred(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([-math.sqrt(3), 0, math.sqrt(3)])
    # a uniform variable on [-a, a] has the variance a²/3, so does Simpson's rule
    assert (torch.tensor([1, 4, 1]) * ends ** 2).sum().item() / 6 == pytest.approx(1)
    # two values 0 and 2 with equal chances have variance 1, as exponential variables do
    both = torch.tensor([difference(torch.tensor(a), torch.tensor(b)) for a in (0.0, 2.0) for b in (0.0, 2.0)])
    assert moments(both)[:2] == pytest.approx([0, 1])


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_draws_have_the_moments_of_their_distribution(name):
    generator = torch.Generator().manual_seed(0)
    (x,) = standard_noise([torch.zeros(500, 400, dtype=torch.float64)], name, generator)
    for power, expected in ((1, 0), (2, 1), (4, FOURTH_MOMENTS[name])):
        error = (x ** power).std().item() / math.sqrt(x.numel())
        assert abs((x ** power).mean().item() - expected) <= 4 * error + 1e-12
    (again,) = standard_noise([torch.zeros(500, 400, dtype=torch.float64)], name, torch.Generator().manual_seed(0))
    assert torch.equal(x, again)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_every_distribution_is_exact_in_pairs_and_has_the_covariance_of_its_sigma(name):
    model = Quadratic(3)
    before = model.weight.detach().clone()
    Noise(0.5, two_point=True, distribution=name)(model, model, torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.weight.grad, model.gradient(before), rtol=1e-12, atol=1e-12)
    generator = torch.Generator().manual_seed(1)
    gradients = []
    for _ in range(1500):
        Noise(0.5, distribution=name)(model, model, generator)
        gradients.append(model.weight.grad.clone())
    expected = 0.25 * model.matrix @ model.matrix
    assert (torch.stack(gradients).T.cov() - expected).norm() < 0.2 * expected.norm()
    assert torch.equal(model.weight, before)


def test_one_sided_covariance_is_exact_over_all_signs():
    """sigma² A² on a quadratic with the Hessian A, over the complete design of the rademacher noise."""
    model, probe = Quadratic(4), Noise(0.5)
    gradients = []
    for signs in itertools.product((-1.0, 1.0), repeat=4):
        noise = [[torch.tensor(signs, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)]]
        model.zero_grad()
        probe.over(noise, 0.5, model, Closure(model))
        gradients.append(model.weight.grad.clone())
    gradients = torch.stack(gradients)
    torch.testing.assert_close(gradients.mean(0), model.gradient(model.weight.detach()))
    torch.testing.assert_close(gradients.T.cov(correction=0), 0.25 * model.matrix @ model.matrix)


def test_the_clean_gradient_and_loss_have_the_weight_lam():
    model, before = Quadratic(), Quadratic().weight.detach()
    value = Noise(0.5, draws=2, lam=0.25)(model, model, torch.Generator().manual_seed(0))
    clean, first, second = model.seen
    assert torch.equal(clean, before)
    torch.testing.assert_close(model.weight.grad, 0.25 * model.gradient(clean)
                               + 0.375 * (model.gradient(first) + model.gradient(second)))
    torch.testing.assert_close(value, 0.25 * model.value(clean) + 0.375 * (model.value(first) + model.value(second)))
    assert Noise(draws=2, lam=0.25).passes == 3


def test_without_a_clean_gradient_there_is_no_clean_pass():
    model = Quadratic()
    Noise(0.5, draws=2, two_point=True)(model, model)
    assert len(model.seen) == 4
    assert not any(torch.equal(w, model.weight) for w in model.seen)


@pytest.mark.parametrize(("probe", "moved", "passes"), [
    (Noise(0.1, 2), False, 3), (Noise(0.1, 2, lam=0.5), False, 3), (Noise(0.1, 2, statistics="moved"), True, 2)])
def test_running_statistics_come_from_one_pass(probe, moved, passes):
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    net, calls = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4)), []

    def loss():
        calls.append(net[0].weight.detach().clone())
        return net(x).pow(3).mean()
    probe(net, loss, torch.Generator().manual_seed(1))
    assert len(calls) == passes
    assert net[1].num_batches_tracked == 1
    assert torch.equal(calls[0], net[0].weight) != moved
    torch.testing.assert_close(net[1].running_mean, 0.1 * (x @ calls[0].T).mean(0))


def test_running_statistics_of_a_pair_are_those_of_the_weights_up_to_the_second_order():
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()

    def reached(probe):
        net = copy.deepcopy(start)
        probe(net, lambda: net(x).square().mean(), torch.Generator().manual_seed(1))
        assert net[1].num_batches_tracked == 1
        return torch.cat([net[1].running_mean, net[1].running_var])
    exact = reached(Noise(0.1, 2, True))
    far, near = ((reached(Noise(sigma, 2, True, statistics="moved")) - exact).norm() for sigma in (0.1, 0.05))
    assert far / near == pytest.approx(4, rel=1e-6)  # exactly quadratic: the mean is linear in W, the variance square
    one_sided = reached(Noise(0.05, 2, statistics="moved")) - exact
    assert one_sided.norm() > 5 * near


def prepared(epochs=5, **changes):
    recipe = NoiseOverTime(Noise(0.2, **changes.pop("noise", {})), **changes)
    return recipe.prepare(Context.of(nn.Linear(2, 2), epochs=epochs))


@pytest.mark.parametrize(("schedule", "expected"), [
    ("constant", [0.2] * 5), ("linear", [0, 0.05, 0.1, 0.15, 0.2]),
    ("log-linear", [1e-5 * 20_000 ** (i / 4) for i in range(5)])])
def test_sigma_over_the_epochs(schedule, expected):
    probe, model = prepared(schedule=schedule), Quadratic()
    for number, sigma in enumerate(expected, 1):
        probe.begin_epoch(number, None)
        assert probe.sigma == pytest.approx(sigma)
        model.seen.clear()
        probe(model, model, torch.Generator().manual_seed(0))
        draw = torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        torch.testing.assert_close(model.seen[0] - model.weight.detach(), sigma * draw)
    assert prepared(epochs=1, schedule=schedule).sigma == pytest.approx(0.2)


def test_a_schedule_needs_the_number_of_epochs():
    with pytest.raises(InputError) as caught:
        prepared(epochs=None, schedule="linear")
    assert str(caught.value).endswith("pass epochs=… to the context")
    assert prepared(epochs=None, momentum=0.5).sigma == 0.2


def test_momentum_of_the_noise_keeps_its_standard_deviation_and_correlates_neighbours():
    probe, model = prepared(momentum=0.8, noise={"draws": 2}), nn.Linear(200, 50, bias=False, dtype=torch.float64)
    moves, generator = [], torch.Generator().manual_seed(0)

    def loss():
        moves.append(model.weight.detach() - before)
        return model.weight.sum()
    before = model.weight.detach().clone()
    for _ in range(4):
        probe(model, loss, generator)
    first, second = torch.stack(moves[0::2]).flatten(1), torch.stack(moves[1::2]).flatten(1)
    assert first.std(1).tolist() == pytest.approx([0.2] * 4, rel=0.03)  # 4 standard errors of 10,000 draws
    correlation = torch.corrcoef(torch.cat([first, second]))
    assert [correlation[0, k].item() for k in (1, 2, 3)] == pytest.approx([0.8, 0.64, 0.512], abs=0.03)
    assert correlation[:4, 4:].abs().max() < 0.04


def test_remembered_noise_resumes_bit_for_bit():
    def run(probe, model, generator, steps):
        for _ in range(steps):
            probe(model, model, generator)
        return model.weight.grad
    generator, model = torch.Generator().manual_seed(0), Quadratic()
    probe = prepared(momentum=0.6)
    run(probe, model, generator, 2)
    kept, position = {k: v.clone() for k, v in probe.state().items()}, generator.get_state()
    expected = run(probe, model, generator, 2).clone()
    other = prepared(momentum=0.6)
    other.load(kept)
    generator.set_state(position)
    assert torch.equal(run(other, Quadratic(), generator, 2), expected)
    assert not torch.equal(run(prepared(momentum=0.6), Quadratic(), generator.set_state(position), 2), expected)


def test_only_what_changes_over_time_needs_a_run():
    assert get_algorithm("nso").probe == Noise(0.01, two_point=True, statistics="moved")
    assert get_algorithm("noise-injection", momentum=0.5).probe == NoiseOverTime(Noise(0.01), momentum=0.5)
