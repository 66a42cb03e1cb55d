"""The pull towards the start and the layer-wise balls, by hand."""

import pytest
import torch
from torch import nn

from genmeasure.errors import InputError
from genmeasure.training.constraints.layer_balls import LayerBalls, project_to_ball
from genmeasure.training.context import Context
from genmeasure.training.penalties.distance import DistanceToStart


def moved(model, seed=0, by=1.0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += by * torch.randn(p.shape, generator=generator, dtype=p.dtype)


@pytest.fixture
def net64(net):
    return net.double()


def test_l2_sp_value_and_gradient(net64):
    context = Context.of(net64, head="head")
    penalty = DistanceToStart(0.3, 0.7).prepare(context)
    moved(net64)
    value = penalty(net64)
    value.backward()
    expected = 0.0
    for name, p in net64.named_parameters():
        weight, center = (0.7, 0.0) if name.startswith("head.") else (0.3, context.start[name])
        torch.testing.assert_close(p.grad, 2 * weight * (p - center).detach())
        expected += weight * (p - center).square().sum().item()
    assert value.item() == pytest.approx(expected)


def test_l2_sp_without_biases_and_frozen_tensors(net64):
    net64.conv1.weight.requires_grad_(False)
    penalty = DistanceToStart(biases=False).prepare(Context.of(net64))
    assert list(penalty.pulls) == ["bn1.weight", "conv2.weight", "bn2.weight", "head.weight"]


def test_penalty_and_projection_see_through_wrappers(net64):
    context = Context.of(net64)
    penalty, projection = DistanceToStart().prepare(context), LayerBalls(0.0).prepare(context)
    wrapped = nn.DataParallel(net64)
    moved(wrapped)
    assert penalty(wrapped).item() == penalty(net64).item()
    projection(wrapped)
    assert torch.equal(net64.conv1.weight, context.start["conv1.weight"])


def test_projection_lands_on_the_sphere_once(net64):
    context = Context.of(net64)
    projection = LayerBalls(0.5, growth=2.0, head_radius=1.5).prepare(context)
    moved(net64)
    direction = {n: p.detach() - context.start[n] for n, p in net64.named_parameters()}
    free = net64.conv1.bias.detach().clone()
    projection(net64)
    for name, radius in {"conv1.weight": 0.5, "conv2.weight": 1.0}.items():
        difference = net64.get_parameter(name).detach() - context.start[name]
        assert difference.norm().item() == pytest.approx(radius, rel=1e-12)
        torch.testing.assert_close(difference, direction[name] * radius / direction[name].norm())
    assert net64.head.weight.norm().item() == pytest.approx(1.5, rel=1e-12)
    assert torch.equal(net64.conv1.bias, free)
    assert projection.report() == [
        {"name": "conv1.weight", "rule": "ball", "about": "start", "radius": 0.5},
        {"name": "conv2.weight", "rule": "ball", "about": "start", "radius": 1.0},
        {"name": "head.weight", "rule": "ball", "about": "zero", "radius": 1.5},
        *({"name": n, "rule": "free", "about": "", "radius": None}
          for n in ("conv1.bias", "bn1.weight", "bn1.bias", "conv2.bias", "bn2.weight", "bn2.bias", "head.bias"))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_projection_is_idempotent_bit_for_bit(dtype):
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-3, 1.0, 100.0):
        center = (torch.randn(50, 40, generator=generator) * scale).to(dtype)
        weight = center + torch.randn(50, 40, generator=generator).to(dtype)
        project_to_ball(weight, center, 0.7)
        once = weight.clone()
        project_to_ball(weight, center, 0.7)
        assert torch.equal(weight, once)


def test_inside_the_ball_nothing_moves():
    center = torch.zeros(2, 2)
    weight = torch.tensor([[0.3, 0.0], [0.0, 0.4]])
    project_to_ball(weight, center, 0.6)
    assert torch.equal(weight, torch.tensor([[0.3, 0.0], [0.0, 0.4]]))


@pytest.mark.parametrize("move", [0.0, 1.0, torch.inf])
def test_radius_zero_freezes(net, move):
    context = Context.of(net)
    projection = LayerBalls(0.0, head_radius=0.0, head_about="start", batch_norm=True).prepare(context)
    with torch.no_grad():
        for p in net.parameters():
            p += move
    projection(net)
    for name in ("conv1.weight", "conv2.weight", "head.weight"):
        assert torch.equal(net.get_parameter(name), context.start[name])
    if move == 1.0:
        torch.testing.assert_close(net.bn1.weight, context.start["bn1.weight"])


def test_radius_by_name(net64):
    context = Context.of(net64)
    projection = LayerBalls({"conv2": 0.25, "conv*.weight": 0.5}, head_radius=None).prepare(context)
    assert [(b.name, b.radius) for b in projection.balls] == [("conv1.weight", 0.5), ("conv2.weight", 0.25)]
    assert "head.weight" in projection.free


def test_batch_norm_clip(net64):
    context = Context.of(net64)
    projection = LayerBalls(0.1, batch_norm=True).prepare(context)
    moved(net64)
    net64.bn1.running_var += 0.5
    projection(net64)
    deviation = (net64.bn1.running_var + net64.bn1.eps).sqrt()
    start = context.start["bn1.weight"] / (context.start["bn1.running_var"] + net64.bn1.eps).sqrt()
    assert (net64.bn1.weight / deviation - start).abs().max().item() == pytest.approx(0.1)
    once = net64.bn1.weight.clone()
    projection(net64)
    assert torch.equal(net64.bn1.weight, once)
    assert {"name": "bn2.weight", "rule": "clip", "about": "start", "radius": 0.1} in projection.report()


@pytest.mark.parametrize(("balls", "end"), [
    (LayerBalls({"convv1": 1.0}), "did you mean 'conv1.weight'?"),
    (LayerBalls({}, head_radius=None), "give a radius for at least one of its weight tensors"),
])
def test_what_fits_no_layer_is_refused(balls, end, net):
    with pytest.raises(InputError) as caught:
        balls.prepare(Context.of(net))
    assert str(caught.value).endswith(end)


def test_context_finds_the_head():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4), nn.BatchNorm1d(4))
    context = Context.of(model)
    assert (context.head, context.classes) == ("2", 4)
    assert context.in_head("2.weight")
    assert not context.in_head("0.weight")


@pytest.mark.parametrize(("model", "head", "end"), [
    (nn.Sequential(nn.ReLU()), None, "name its last layer with head=…"),
    (nn.Sequential(nn.Linear(1, 1)), "1", "known are: 0"),
    (nn.Sequential(nn.Linear(1, 1), nn.ReLU()), "1", "pass classes=…"),
])
def test_context_errors(model, head, end):
    with pytest.raises(InputError) as caught:
        Context.of(model, head=head)
    assert str(caught.value).endswith(end)
