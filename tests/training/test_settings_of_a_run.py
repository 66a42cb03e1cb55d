"""Settings carried out: schedules, groups, clipping, parts of a batch, fewer bits."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import small_net
from torch import nn

from genmeasure.data.batches import Batch
from genmeasure.errors import InputError
from genmeasure.training.algorithm import Algorithm, get_algorithm
from genmeasure.training.context import Context
from genmeasure.training.history import Epoch
from genmeasure.training.loop import Settings, fine_tune, step
from genmeasure.training.losses.cross_entropy import CrossEntropy
from genmeasure.training.minibatch import MiniBatch
from genmeasure.training.optimizers import build_optimizer
from genmeasure.training.pieces import Penalty
from genmeasure.training.precision import Precision
from genmeasure.training.probes.here import Here
from genmeasure.training.probes.uphill import Uphill
from genmeasure.training.schedules import learning_rate

LOSS = CrossEntropy()


def rates(steps=1, history=(), **given):
    settings = Settings(learning_rate=1.0, **given)
    return [learning_rate(e, settings, step=s, steps=steps, history=history)
            for e in range(1, settings.epochs + 1) for s in range(steps)]


def test_linear_and_cosine_end_at_the_final_factor():
    assert rates(epochs=4, schedule="linear", final_factor=0.2) == pytest.approx([1, 0.8, 0.6, 0.4])
    by_step = rates(steps=5, epochs=4, schedule="cosine", schedule_by="step", final_factor=0.1)
    assert by_step == pytest.approx([0.1 + 0.45 * (1 + math.cos(math.pi * s / 20)) for s in range(20)])


def test_warm_up_rises_linearly_and_the_schedule_begins_after_it():
    by_step = rates(steps=4, epochs=3, schedule="linear", schedule_by="step", warm_up=1.0)
    assert by_step[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert by_step[4:] == pytest.approx([1 - s / 8 for s in range(8)])
    assert rates(epochs=4, schedule="step", step_epochs=1, warm_up=2) == pytest.approx([1 / 3, 2 / 3, 1, 0.1])


def test_plateau_against_torch():
    losses = [1.0, 0.9, 0.95, 0.92, 0.91, 0.5, 0.6, 0.7, 0.8, 0.9]
    optimizer = torch.optim.SGD([nn.Parameter()], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2)
    settings = Settings(epochs=20, learning_rate=1.0, schedule="plateau", step_factor=0.5, step_epochs=2)
    history = []
    for number, loss in enumerate(losses, 1):
        assert learning_rate(number, settings, history=history) == optimizer.param_groups[0]["lr"]
        history.append(Epoch(number, 0.0, loss, 0.0, 0.0, 0.0))
        scheduler.step(loss)
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_plateau_needs_validation(net, train, settings):
    with pytest.raises(InputError, match="pass validation=… or another schedule$"):
        fine_tune(net, "plain", train, settings=replace(settings, schedule="plateau"))


def test_head_learns_at_a_rate_of_its_own(net, train, settings):
    frozen = fine_tune(net, "plain", train, settings=replace(settings, head_factor=0.0)).model
    for name, p in frozen.named_parameters():
        assert torch.equal(p, net.get_parameter(name)) == name.startswith("head.")
    optimizer = build_optimizer(net, Context.of(net), Settings(head_factor=10.0))
    assert [(group["factor"], len(group["params"])) for group in optimizer.param_groups] == [(1.0, 8), (10.0, 2)]


def test_settings_reach_the_optimizer(net):
    settings = Settings(betas=[0.5, 0.6], epsilon=1e-3, weight_decay=0.1, momentum=0.7)
    context = Context.of(net)
    for name in ("adam", "amsgrad", "adamw", "nadam", "radam"):
        group = build_optimizer(net, context, replace(settings, optimizer=name)).param_groups[0]
        assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.5, 0.6), 1e-3, 0.1)
    for name in ("sgd", "nesterov", "rmsprop"):
        group = build_optimizer(net, context, replace(settings, optimizer=name)).param_groups[0]
        assert (group["momentum"], group["weight_decay"]) == (0.7, 0.1)
    assert build_optimizer(net, context, replace(settings, optimizer="nesterov")).param_groups[0]["nesterov"]
    assert build_optimizer(net, context, replace(settings, optimizer="amsgrad")).param_groups[0]["amsgrad"]


@pytest.fixture
def flat():
    """A double-precision net whose examples do not influence each other."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return Batch((torch.randn(11, 6, generator=generator, dtype=torch.float64),),
                 torch.randint(3, (11,), generator=generator), rows=torch.arange(11))


def gradients(model):
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    return found


@pytest.mark.parametrize("probe", [Here(), Uphill(0.3)])
@pytest.mark.parametrize("parts", [2, 3, 5, 100])
def test_parts_of_a_batch_have_its_gradient(probe, parts, flat, batch):
    whole = probe(flat, MiniBatch(flat, LOSS, batch))
    expected = gradients(flat)
    objective = MiniBatch(flat, LOSS, batch, accumulate=parts)
    sizes = [len(part) for part in objective.parts()]
    assert sum(sizes) == 11
    assert min(sizes) >= 2
    assert len(sizes) == min(parts, 5)
    assert max(sizes) - min(sizes) <= 1
    value = probe(flat, objective)
    torch.testing.assert_close(gradients(flat), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(value, whole)
    torch.testing.assert_close(objective.value(), MiniBatch(flat, LOSS, batch).value())


def test_statistics_count_every_part_once(net, train, settings):
    for name in ("plain", "sam", "nso"):
        result = fine_tune(net, name, train, settings=replace(settings, accumulate=4, epochs=1))
        assert result.model.bn1.num_batches_tracked == 4 * 6


def test_gradients_add_up_also_where_they_are_scaled(flat, batch):
    flat, batch = flat.float(), batch.to("cpu", torch.float32)
    for precision in (Precision(), Precision("float16")):
        objective = MiniBatch(flat, LOSS, batch, precision)
        flat.zero_grad()
        objective.gradient(0.25)
        objective.gradient(0.5)
        twice = gradients(flat)
        objective.gradient()
        for one, other in zip(twice, gradients(flat), strict=True):
            torch.testing.assert_close(one, 0.75 * other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("name", "tolerance"), [("bfloat16", 0.05), ("float16", 0.005)])
def test_gradients_in_fewer_bits_have_their_right_length(name, tolerance, net, train):
    net.eval()
    batch = next(iter(train))
    MiniBatch(net, LOSS, batch).gradient()
    exact = torch.cat([g.flatten() for g in gradients(net)])
    value = MiniBatch(net, LOSS, batch, Precision(name)).gradient()
    assert value.dtype == torch.float32
    found = torch.cat([g.flatten() for g in gradients(net)])
    assert found.dtype == torch.float32
    assert 0 < (found - exact).norm() / exact.norm() < tolerance


def test_perturbation_in_float16_has_length_rho(net, train):
    """It would be 65536 times too long, or not depend on rho, if gradients were scaled."""
    net.eval()
    batch, seen = next(iter(train)), []

    class Seen(MiniBatch):
        def gradient(self, weight=1.0):
            seen.append(torch.cat([p.detach().flatten().clone() for p in self.model.parameters()]))
            return super().gradient(weight)
    Uphill(0.3)(net, Seen(net, LOSS, batch, Precision("float16")))
    assert (seen[1] - seen[0]).norm().item() == pytest.approx(0.3, rel=1e-4)


@pytest.mark.parametrize("probe", ["plain", "sam", "cr-sam", "hero", "nso"])
def test_overflow_skips_the_step_and_shrinks_the_scale(probe, net, train):
    net.eval()
    batch = next(iter(train))
    precision = Precision("float16")
    precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 40, growth_interval=1)
    settings = Settings(clip=1.0)
    context = Context.of(net, settings=settings, epochs=1)
    algorithm = get_algorithm(probe).prepare(context)
    optimizer = build_optimizer(net, context, settings)
    before = [p.detach().clone() for p in net.parameters()]
    objective = MiniBatch(net, LOSS, batch, precision)
    generator = torch.Generator().manual_seed(0)
    assert step(net, algorithm, objective, optimizer, generator, clip=1.0, precision=precision) is None
    assert precision.scaler.get_scale() == 2.0 ** 39
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
    assert not optimizer.state
    precision.scaler.update(1024.0)
    value = step(net, algorithm, objective, optimizer, generator, clip=1.0, precision=precision)
    assert math.isfinite(value.item())
    assert precision.scaler.get_scale() == 2048.0
    assert not torch.equal(net.head.weight, before[-2])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["plain", "sam", "nso"])
def test_training_in_fewer_bits_learns(name, precision, net, train, validation, settings):
    settings = replace(settings, epochs=4, precision=precision)
    result = fine_tune(net, name, train, validation, settings=settings)
    assert result.history[-1].validation_error < 0.5
    assert all(p.dtype == torch.float32 for p in result.model.parameters())


def test_a_gradient_from_differences_needs_no_scale_in_float16(net, train, settings):
    result = fine_tune(net, "zeroth-order", train, settings=replace(settings, epochs=1, precision="float16"))
    assert math.isfinite(result.history[-1].training_loss)
    assert not torch.equal(result.model.head.weight, net.head.weight)


def test_clipping_holds_for_gradient_and_penalty_together(flat, batch):
    class Pull(Penalty):
        def __call__(self, model):
            return 100 * model[0].weight.square().sum()
    optimizer = torch.optim.SGD(flat.parameters(), lr=1.0)
    before = [p.detach().clone() for p in flat.parameters()]
    step(flat, Algorithm(penalty=Pull()), MiniBatch(flat, LOSS, batch), optimizer, clip=0.01)
    moved = torch.cat([(p - old).flatten() for p, old in zip(flat.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-4)


def test_model_of_another_type_under_float16(train, settings):
    result = fine_tune(small_net(torch.float64), "plain", train, settings=replace(settings, precision="bfloat16"))
    assert result.model.head.weight.dtype == torch.float64


@pytest.mark.parametrize(("given", "end"), [
    ({"accumulate": 0}, "it must be at least 1"),
    ({"head_factor": -1.0}, "it must be at least 0"),
    ({"betas": (0.9, 1.0)}, "at least 0 and below 1"),
    ({"betas": (0.9,)}, "at least 0 and below 1"),
    ({"epsilon": 0.0}, "it must be above 0"),
    ({"clip": 0.0}, "or None for no limit"),
    ({"warm_up": 30.0}, "the warm-up must be shorter than training"),
    ({"optimizer": "nesterov", "momentum": 0.0}, "or use optimizer='sgd'"),
    ({"precision": "float"}, "did you mean 'float32'?"),
    ({"schedule_by": "steps"}, "did you mean 'step'?"),
])
def test_bad_settings(given, end):
    with pytest.raises(InputError) as caught:
        Settings(**given)
    assert str(caught.value).endswith(end)
