"""Gradients estimated from losses alone."""

import pytest
import torch
from quadratic import Quadratic
from scipy.linalg import hadamard
from torch import nn

from genmeasure.training.pieces import Closure
from genmeasure.training.probes.value_differences import ValueDifferences


def along(directions, sigma=0.5):
    """The model and its estimated gradient for directions [draws, 8]."""
    model = Quadratic(8)
    model.unused.requires_grad_(False)
    probe = ValueDifferences(sigma, len(directions))
    value = probe.along([[u] for u in directions], model, Closure(model))
    return model, value


@pytest.mark.parametrize("directions", [8 ** 0.5 * torch.eye(8, dtype=torch.float64),
                                        torch.tensor(hadamard(8), dtype=torch.float64)], ids=["axes", "hadamard"])
def test_a_complete_design_gives_the_exact_gradient_of_a_quadratic(directions):
    model, value = along(directions)
    w = model.weight.detach()
    torch.testing.assert_close(model.weight.grad, model.gradient(w))
    # and the mean loss is that of the smoothed function: f + sigma²/2 times the trace
    torch.testing.assert_close(value, model.value(w) + 0.125 * model.matrix.trace())


def test_a_single_direction_gives_the_slope_along_it():
    u = torch.randn(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model, _ = along(u[None])
    torch.testing.assert_close(model.weight.grad, (u @ model.gradient(model.weight.detach())) * u)


def test_the_mean_over_draws_is_the_gradient_of_the_smoothed_loss():
    """f = sum w³: grad E f(w + sigma u) = 3 w² + 3 sigma², here with sigma = 1."""
    model = nn.Linear(4, 1, bias=False, dtype=torch.float64)
    model.weight.data = torch.tensor([[0.3, -0.2, 0.1, 0.5]], dtype=torch.float64)
    generator, estimates = torch.Generator().manual_seed(0), []
    for _ in range(3000):
        ValueDifferences(1.0)(model, lambda: model.weight.pow(3).sum(), generator)
        estimates.append(model.weight.grad.flatten().clone())
    estimates = torch.stack(estimates)
    error = estimates.std(0) / 3000 ** 0.5
    assert ((estimates.mean(0) - 3 * model.weight.detach().flatten() ** 2 - 3).abs() < 4 * error).all()
    assert (error < 0.5).all()


def test_no_graph_is_built():
    model, graphs = Quadratic(), []

    def loss():
        graphs.append(torch.is_grad_enabled())
        return model()
    ValueDifferences(draws=3)(model, loss)
    assert graphs == [False] * 6


def test_both_losses_of_a_pair_see_the_same_dropout():
    net, outputs = nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5)), []

    def loss():
        outputs.append(net(torch.ones(1, 3)) == 0)
        return outputs[-1].sum().float()
    torch.manual_seed(0)
    ValueDifferences(1e-3, draws=2)(net, loss)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])
    assert torch.equal(outputs[2], outputs[3])
