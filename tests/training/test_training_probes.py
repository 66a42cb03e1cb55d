"""Probes against closed forms, alone in a loop of one's own."""

import pytest
import torch
from quadratic import Quadratic
from torch import nn

from genmeasure.training.probes.here import Here
from genmeasure.training.probes.noise import Noise
from genmeasure.training.probes.uphill import Uphill, ascent
from genmeasure.training.statistics import frozen_statistics


def test_uphill_is_the_gradient_at_distance_rho():
    model = Quadratic()
    before = model.weight.detach().clone()
    value = Uphill(0.3)(model, model)
    here, there = model.seen
    step = model.gradient(before) / model.gradient(before).norm()
    assert torch.equal(here, before)
    assert torch.equal(model.weight, before)
    assert (there - here).norm().item() == pytest.approx(0.3, rel=1e-12)
    torch.testing.assert_close(there, before + 0.3 * step)
    torch.testing.assert_close(model.weight.grad, model.gradient(before + 0.3 * step))
    assert model.unused.grad is None
    assert value.item() == pytest.approx(Quadratic()().item())


def test_ascent_has_one_norm_over_all_tensors_and_no_nan():
    up = ascent([torch.tensor([3.0]), torch.tensor([[4.0]])], 10.0)
    assert [t.item() for t in up] == pytest.approx([6.0, 8.0])
    assert not ascent([torch.zeros(3)], 1.0)[0].any()


@pytest.mark.parametrize("seed", range(5))
def test_two_point_noise_is_exact_on_a_quadratic(seed):
    model = Quadratic()
    before = model.weight.detach().clone()
    Noise(0.7, draws=3, two_point=True)(model, model, torch.Generator().manual_seed(seed))
    torch.testing.assert_close(model.weight.grad, model.gradient(before), rtol=1e-12, atol=1e-12)
    assert torch.equal(model.weight, before)
    moves = torch.stack(model.seen) - before
    torch.testing.assert_close(moves[0::2], -moves[1::2])


def test_one_sided_noise_has_the_mean_gradient_of_its_draws():
    model = Quadratic()
    before = model.weight.detach().clone()
    value = Noise(0.7, draws=4)(model, model, torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.weight.grad, torch.stack([model.gradient(w) for w in model.seen]).mean(0))
    assert len(model.seen) == 4
    assert not torch.equal(model.seen[0], model.seen[1])
    assert torch.equal(model.weight, before)
    with torch.no_grad():
        losses = [0.5 * w @ model.matrix @ w + model.slope @ w for w in model.seen]
    assert value.item() == pytest.approx(torch.stack(losses).mean().item())


def test_one_sided_noise_covariance():
    """sigma² A² on a quadratic with the Hessian A."""
    model = Quadratic(3)
    generator, gradients = torch.Generator().manual_seed(1), []
    for _ in range(4000):
        Noise(0.5)(model, model, generator)
        gradients.append(model.weight.grad.clone())
    expected = 0.25 * model.matrix @ model.matrix
    assert (torch.stack(gradients).T.cov() - expected).norm() < 0.08 * expected.norm()  # 3 standard errors


def test_noise_zero_is_the_plain_gradient(net):
    x, y = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    net.drop.p = 0.0
    gradients = []
    for probe in (Here(), Noise(0.0), Noise(0.0, two_point=True), Uphill(0.0)):
        probe(net, lambda: nn.functional.cross_entropy(net(x), y), torch.Generator().manual_seed(0))
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0])


def test_frozen_weights_are_not_perturbed(net):
    net.conv1.weight.requires_grad_(False)
    seen = []

    def loss():
        seen.append((net.conv1.weight.clone(), net.conv2.weight.detach().clone()))
        return net(torch.ones(4, 1, 8, 8)).square().mean()
    for probe in (Uphill(), Noise(two_point=True)):
        seen.clear()
        probe(net, loss)
        assert torch.equal(seen[0][0], seen[-1][0])
        assert not torch.equal(seen[0][1], seen[-1][1])
        assert net.conv1.weight.grad is None


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.BatchNorm1d(3, momentum=None), nn.SyncBatchNorm(3),
                                   nn.InstanceNorm1d(3, track_running_stats=True)])
def test_frozen_statistics(layer):
    x = torch.randn(8, 3, 4, generator=torch.Generator().manual_seed(0))
    if isinstance(layer, nn.SyncBatchNorm):
        layer.forward = lambda x: nn.BatchNorm1d.forward(layer, x)  # needs a GPU, and has the same buffers
        layer._check_input_dim = lambda x: None
    layer(x)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    buffers = dict(layer.named_buffers())
    with frozen_statistics(layer), frozen_statistics(layer):
        y = layer(x + 5)
        layer(torch.full_like(x, torch.inf))
    assert y.mean().abs() < 1e-5  # normalised by the batch
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    assert all(buffers[k] is v for k, v in layer.named_buffers())
    layer(x + 5)
    assert not torch.equal(layer.running_mean, before["running_mean"])


def test_weights_come_back_after_an_error(net):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    calls = []

    def loss():
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("stop")
        with frozen_statistics(net):
            return net(torch.ones(4, 1, 8, 8)).square().mean()
    with pytest.raises(RuntimeError, match="stop"):
        Uphill()(net, loss)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
