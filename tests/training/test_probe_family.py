"""What every probe promises."""

import copy

import pytest
import torch
from quadratic import Quadratic
from torch import nn

from genmeasure import registry
from genmeasure.training.algorithm import get_algorithm
from genmeasure.training.context import Context
from genmeasure.training.loop import Settings
from genmeasure.training.probes.here import Here

SETTINGS = Settings(optimizer="sgd", momentum=0.0)
VARIANTS = {"nso-of-everything": ("nso", {"draws": 2, "lam": 0.3, "distribution": "laplace", "schedule": "log-linear",
                                          "momentum": 0.5}),
            "nso-clean": ("nso", {"statistics": "clean"}), "hero-of-sam": ("hero", {"adaptive": False}),
            "bsam": ("bsam", {"examples": 10}), "zeroth-order-of-three": ("zeroth-order", {"draws": 3})}
NAMES = [member.name for member in registry.algorithm
         if member.name != "bsam" and not isinstance(get_algorithm(member.name).probe, Here)] + list(VARIANTS)
MOVED = {"nso"}
"""Their running statistics are the mean of those of the first two passes."""
BLIND = {"zeroth-order", "zeroth-order-of-three"}
"""They cannot know which weights the loss reaches."""


def prepared(name, model):
    registered, parameters = VARIANTS.get(name, (name, {}))
    context = Context.of(model, head="", classes=2, epochs=4, settings=SETTINGS)
    probe = get_algorithm(registered, **parameters).probe.prepare(context)
    probe.begin_epoch(2, None)
    return probe


def generator():
    return torch.Generator().manual_seed(0)


def small():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2), nn.LayerNorm(2))


X = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
Y = torch.arange(8) % 2


def loss_of(net, calls):
    def loss():
        calls.append([p.detach().clone() for p in net.parameters()])
        return nn.functional.cross_entropy(net(X), Y)
    return loss


def test_all_probes_are_here():
    assert {"sam", "asam", "usam", "random-sam", "cr-sam", "cr-sam-differences", "hero", "nso", "noise-injection",
            "zeroth-order"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_weights_come_back_bit_for_bit_also_after_an_error_in_any_pass(name):
    net, calls = small(), []
    before = copy.deepcopy(net.state_dict())
    prepared(name, net)(net, loss_of(net, calls), generator())
    assert len(calls) >= 2
    for last in range(1, len(calls) + 1):
        net.load_state_dict(before)
        buffers, passes = dict(net.named_buffers()), iter(range(1, last))

        def loss(net=net, passes=passes):
            if next(passes, None) is None:
                raise RuntimeError("stop")
            return nn.functional.cross_entropy(net(X), Y)
        with pytest.raises(RuntimeError, match="stop"):
            prepared(name, net)(net, loss, generator())
        assert all(torch.equal(p, before[key]) for key, p in net.named_parameters())
        assert all(buffers[key] is buffer for key, buffer in net.named_buffers())


@pytest.mark.parametrize("name", NAMES)
def test_statistics_are_those_of_one_plain_pass(name):
    net, plain, calls = small(), small(), []
    prepared(name, net)(net, loss_of(net, calls), generator())
    assert net[1].num_batches_tracked == 1
    moved = not all(torch.equal(p, q) for p, q in zip(calls[0], net.parameters(), strict=True))
    assert moved == (name in MOVED)
    reached = []
    for weights in calls[:2 if name in MOVED else 1]:
        other = copy.deepcopy(plain)
        other.load_state_dict(dict(zip(dict(net.named_parameters()), weights, strict=True)), strict=False)
        other(X)
        reached.append(torch.stack([other[1].running_mean, other[1].running_var]))
    assert torch.equal(torch.stack([net[1].running_mean, net[1].running_var]), torch.stack(reached).mean(0))


@pytest.mark.parametrize("name", NAMES)
def test_frozen_weights_stay_where_they_are(name):
    net, calls = small(), []
    frozen = net[0].weight.requires_grad_(False)
    prepared(name, net)(net, loss_of(net, calls), generator())
    assert all(torch.equal(call[0], frozen) for call in calls)
    assert any(not torch.equal(call[4], net[3].weight) for call in calls)
    assert frozen.grad is None
    assert all(p.grad is not None for p in net.parameters() if p is not frozen)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BLIND])
def test_weights_that_the_loss_does_not_reach_get_no_gradient(name):
    model = Quadratic(shape=(5, 1))
    prepared(name, model)(model, model, generator())
    assert model.unused.grad is None
    assert model.weight.grad is not None


@pytest.mark.parametrize("name", NAMES)
def test_old_gradients_are_dropped_and_draws_come_from_the_generator_alone(name):
    net = small()
    state, gradients = copy.deepcopy(net.state_dict()), []
    for old in (None, 7.0):
        net.load_state_dict(state)
        for p in net.parameters():
            p.grad = None if old is None else torch.full_like(p, old)
        torch.manual_seed(len(gradients))
        random = torch.get_rng_state()
        value = prepared(name, net)(net, loss_of(net, []), generator())
        assert not value.requires_grad
        assert torch.equal(random, torch.get_rng_state())
        gradients.append([p.grad.clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_of_zero_gives_no_nan(name):
    model = nn.Linear(3, 2)
    prepared(name, model)(model, lambda: 0 * model(X).sum(), generator())
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["cr-sam", "cr-sam-differences", "hero", "hero-of-sam"])
def test_differences_are_taken_under_one_dropout(name):
    net, masks = nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5), nn.Linear(50, 2)), []
    net[1].register_forward_hook(lambda module, inputs, output: masks.append(output.detach() == 0))
    prepared(name, net)(net, lambda: nn.functional.cross_entropy(net(X), Y), generator())
    assert len(masks) >= 2
    assert all(torch.equal(masks[0], mask) for mask in masks)
