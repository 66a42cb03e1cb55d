"""The projection behind any optimizer's step."""

import pytest
import torch
from torch import nn

from genmeasure.training.constraints.layer_balls import LayerBalls
from genmeasure.training.context import Context
from genmeasure.training.hooks import constrain_steps

X = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(32) % 10
OPTIMIZERS = {"AdamW": lambda p: torch.optim.AdamW(p, lr=0.05),
              "SGD": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9),
              "LBFGS": lambda p: torch.optim.LBFGS(p, max_iter=5)}


def loss(net):
    return nn.functional.cross_entropy(net(X), Y)


def distance(net, start, name="conv2.weight"):
    return (net.get_parameter(name) - start[name]).norm().item()


def steps(net, optimizer, count=4):
    def closure():
        optimizer.zero_grad()
        value = loss(net)
        value.backward()
        return value
    for _ in range(count):
        optimizer.step(closure)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_step_of_every_optimizer(name, net):
    start = {k: v.clone() for k, v in net.state_dict().items()}
    optimizer = OPTIMIZERS[name](net.parameters())
    handle = constrain_steps(optimizer, net, LayerBalls(0.01, growth=2.0))
    steps(net, optimizer)
    assert distance(net, start, "conv1.weight") == pytest.approx(0.01, rel=1e-3)
    assert distance(net, start) == pytest.approx(0.02, rel=1e-3)
    assert (net.bn2.bias - start["bn2.bias"]).abs().max() > 1e-5
    handle.remove()
    steps(net, optimizer)
    assert distance(net, start) > 0.021


def test_accumulation_projects_once_per_step(net):
    calls = []

    class Counted:
        def __call__(self, model):
            calls.append(model)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    constrain_steps(optimizer, net, Counted())
    for _ in range(3):
        (loss(net) / 3).backward()
    assert not calls
    optimizer.step()
    assert calls == [net]


def test_a_step_that_the_scaler_skips_changes_nothing(net):
    start = {k: v.clone() for k, v in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    constrain_steps(optimizer, net, LayerBalls(0.01))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 10)
    for overflow in (True, False):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(net)
        scaler.scale(value).backward()
        if overflow:
            net.conv2.weight.grad[0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        assert distance(net, start) == pytest.approx(0.0 if overflow else 0.01, rel=1e-3)
    assert scaler.get_scale() == 2.0 ** 9


def test_a_prepared_constraint_keeps_the_start_of_a_resumed_run(net):
    context = Context.of(net, head="head")
    with torch.no_grad():
        net.conv2.weight += 1
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    constrain_steps(optimizer, nn.DataParallel(net), LayerBalls(0.01).prepare(context))
    steps(net, optimizer, 1)
    assert distance(net, context.start) == pytest.approx(0.01, rel=1e-3)


def test_a_recipe_takes_the_wrapped_model_as_its_start(net):
    start = net.conv2.weight.detach().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    constrain_steps(optimizer, nn.DataParallel(net), LayerBalls({"conv2": 0.0}), head="head")
    steps(net, optimizer, 1)
    assert torch.equal(net.conv2.weight, start)
