"""The worst inputs nearby: closed forms on linear models, and what is left alone."""

import pytest
import torch
from torch import nn

from genmeasure.data.batches import Batch
from genmeasure.errors import InputError
from genmeasure.losses import cross_entropy
from genmeasure.training.loop import fine_tune
from genmeasure.training.losses.adversarial import AdversarialCrossEntropy, lengths

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 0, 1, 1, 0])


def linear(classes=2):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Linear(5, classes).double()


def uphill(model):
    """For two classes the loss is a decreasing function of (w_y - w_other) x, so the worst way is w_other - w_y."""
    return model.weight.detach()[1 - Y] - model.weight.detach()[Y]


@pytest.mark.parametrize("random_start", [False, True])
def test_closed_form_of_the_maximum_norm(random_start):
    model = linear()
    loss = AdversarialCrossEntropy(0.3, steps=10, random_start=random_start)
    moved = loss.draw(Batch((X,), Y), torch.Generator().manual_seed(0), model).inputs[0]
    torch.testing.assert_close(moved, X + 0.3 * uphill(model).sign())
    worst = (model(X).gather(1, (1 - Y)[:, None]) - model(X).gather(1, Y[:, None])).squeeze(1) + 0.3 * uphill(
        model).abs().sum(1)
    torch.testing.assert_close(loss(model(moved), Y), torch.nn.functional.softplus(worst))


@pytest.mark.parametrize(("random_start", "steps", "tolerance"), [(False, 4, 1e-12), (True, 200, 1e-2)])
def test_closed_form_of_the_euclidean_norm(random_start, steps, tolerance):
    model = linear()
    loss = AdversarialCrossEntropy(0.3, steps=steps, step_size=0.2, norm="2", random_start=random_start)
    moved = loss.draw(Batch((X,), Y), torch.Generator().manual_seed(0), model).inputs[0]
    way = uphill(model)
    torch.testing.assert_close(moved, X + 0.3 * way / way.norm(dim=1, keepdim=True), rtol=0, atol=tolerance)


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_inside_the_ball_and_worse(norm, net, train):
    batch = next(iter(train)).to("cpu", torch.float32)
    loss = AdversarialCrossEntropy(0.1, steps=5, norm=norm)
    moved = loss.draw(batch, torch.Generator().manual_seed(0), net)
    offset = moved.inputs[0] - batch.inputs[0]
    size = offset.abs().amax() if norm == "inf" else lengths([offset]).amax()
    assert size <= 0.1 + 1e-6
    net.eval()
    start = AdversarialCrossEntropy(0.1, steps=0, norm=norm).draw(batch, torch.Generator().manual_seed(0), net)
    clean, random, worst = (cross_entropy(net(b.inputs[0]), b.targets) for b in (batch, start, moved))
    assert (worst > torch.maximum(clean, random)).all()
    assert torch.equal(moved.targets, batch.targets)
    assert torch.equal(moved.rows, batch.rows)


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_random_start_is_uniform_in_the_ball(norm):
    loss = AdversarialCrossEntropy(2.0, steps=0, norm=norm)
    x = torch.zeros(4000, 3, dtype=torch.float64)
    start = loss.draw(Batch((x,), torch.zeros(4000, dtype=torch.int64)), torch.Generator().manual_seed(0),
                      linear()).inputs[0]
    if norm == "inf":
        second = torch.full((3,), 4 / 3, dtype=torch.float64)  # of a uniform number in [-2, 2]
    else:
        second = torch.full((3,), 4 / 5, dtype=torch.float64)  # radius² / (dimension + 2)
        assert lengths([start]).max() <= 2
    assert (start.square().mean(0) - second).abs().max() < 5 * start.square().std(0).max() / 4000**0.5
    assert start.mean(0).abs().max() < 5 * start.std(0).max() / 4000**0.5


def test_everything_is_left_as_found(net, train):
    batch = next(iter(train)).to("cpu", torch.float32)
    net.train()
    net.bn1.eval()
    net.head.weight.grad = torch.ones_like(net.head.weight)
    modes, state = [m.training for m in net.modules()], {k: v.clone() for k, v in net.state_dict().items()}
    inputs, random = batch.inputs[0].clone(), torch.get_rng_state()
    one, again, other = (AdversarialCrossEntropy(0.1, steps=2).draw(batch, torch.Generator().manual_seed(seed), net)
                         for seed in (0, 0, 1))
    assert torch.equal(one.inputs[0], again.inputs[0])
    assert not torch.equal(one.inputs[0], other.inputs[0])
    assert not one.inputs[0].requires_grad
    assert torch.equal(batch.inputs[0], inputs)
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())
    assert torch.equal(net.head.weight.grad, torch.ones_like(net.head.weight))
    assert all(p.grad is None for name, p in net.named_parameters() if name != "head.weight")
    assert torch.equal(torch.get_rng_state(), random)


def test_radius_zero_changes_nothing():
    for norm in ("inf", "2"):
        moved = AdversarialCrossEntropy(0.0, norm=norm).draw(Batch((X,), Y), torch.Generator(), linear())
        assert torch.equal(moved.inputs[0], X)


def test_range_of_the_inputs():
    moved = AdversarialCrossEntropy(5.0, steps=3, lower=-0.5, upper=0.25).draw(
        Batch((X.clamp(-0.5, 0.25),), Y), torch.Generator().manual_seed(0), linear()).inputs[0]
    assert moved.min() == -0.5
    assert moved.max() == 0.25


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = linear()

    def forward(self, right, left):
        return self.layer(torch.cat([left, right], 1))


def test_several_inputs_share_one_ball():
    model = TwoInputs()
    loss = AdversarialCrossEntropy(0.3, steps=4, step_size=0.2, norm="2", random_start=False)
    batch = Batch({"right": X[:, 2:], "left": X[:, :2]}, Y)
    moved = loss.draw(batch, None, model).inputs
    way = uphill(model.layer)
    torch.testing.assert_close(torch.cat([moved["left"], moved["right"]], 1),
                               X + 0.3 * way / way.norm(dim=1, keepdim=True))


def test_passes_are_counted(net, train, settings):
    algorithm = "adversarial-training"
    assert fine_tune(net, algorithm, train, settings=settings).passes == (1 + 10) * settings.epochs


@pytest.mark.parametrize(("call", "end"), [
    (lambda: AdversarialCrossEntropy(-1.0), "it must be at least 0"),
    (lambda: AdversarialCrossEntropy(steps=-1), "it must be at least 0"),
    (lambda: AdversarialCrossEntropy(step_size=0.0), "it must be above 0"),
    (lambda: AdversarialCrossEntropy(norm="1"), "known are: 2, inf"),
    (lambda: AdversarialCrossEntropy().draw(Batch((X,), Y)), "call draw(batch, generator, model)"),
    (lambda: AdversarialCrossEntropy().draw(Batch({"input_ids": torch.ones(6, 3, dtype=torch.int64)}, Y), None,
                                            linear()), "so choose another algorithm for tokens"),
])
def test_refused(call, end):
    with pytest.raises(InputError) as caught:
        call()
    assert str(caught.value).endswith(end)
