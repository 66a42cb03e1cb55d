"""Losses that remember every training example, step by step against literal twins."""

import pytest
import torch
from torch import nn

from genmeasure.data.batches import Batch
from genmeasure.errors import InputError
from genmeasure.losses import cross_entropy
from genmeasure.training.context import Context
from genmeasure.training.losses.early_learning import EarlyLearning
from genmeasure.training.losses.self_adaptive import SelfAdaptive
from genmeasure.training.minibatch import MiniBatch
from genmeasure.training.probes.noise import Noise
from genmeasure.training.probes.uphill import Uphill

GENERATOR = torch.Generator().manual_seed(0)
EXAMPLES = Batch((torch.randn(9, 4, generator=GENERATOR, dtype=torch.float64),), torch.arange(9) % 3,
                 rows=torch.arange(9))
ROWS = ([0, 4, 8], [4, 1, 2], [3, 5, 4])


def model():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Linear(4, 3).double()


def prepared(recipe):
    return recipe.prepare(Context.of(model(), examples=EXAMPLES))


def test_early_learning_regularization():
    """Liu et al. 2020: L = CE + lambda ln(1 - <p, t>), t <- beta t + (1 - beta) p; t is a constant in the gradient."""
    net, loss = model(), prepared(EarlyLearning(3.0, 0.7))
    memory = torch.zeros(9, 3, dtype=torch.float64)
    for rows in ROWS:
        drawn = loss.draw(EXAMPLES.select(torch.tensor(rows)))
        outputs = net(drawn.inputs[0])
        p = outputs.softmax(1)
        for i, row in enumerate(rows):
            memory[row] = 0.7 * memory[row] + 0.3 * p[i].detach()
        literal = cross_entropy(outputs, EXAMPLES.targets[rows]) + 3 * torch.log(1 - (p * memory[rows]).sum(1))
        ours = loss(outputs, drawn.targets)
        torch.testing.assert_close(ours, literal)
        torch.testing.assert_close(loss.memory.targets, memory)
        expected, = torch.autograd.grad(literal.mean(), net.weight, retain_graph=True)
        found, = torch.autograd.grad(ours.mean(), net.weight)
        torch.testing.assert_close(found, expected)
        with torch.no_grad():
            net.weight -= 0.5 * expected


def test_early_learning_without_strength_is_cross_entropy():
    loss = prepared(EarlyLearning(strength=0.0))
    drawn, outputs = loss.draw(EXAMPLES), model()(EXAMPLES.inputs[0])
    torch.testing.assert_close(loss(outputs, drawn.targets), cross_entropy(outputs, EXAMPLES.targets))


def test_early_learning_stays_finite_when_the_model_is_certain():
    loss = prepared(EarlyLearning())
    outputs = (1e4 * torch.eye(3, dtype=torch.float64)[EXAMPLES.targets]).requires_grad_()
    for _ in range(50):
        losses = loss(outputs, loss.draw(EXAMPLES).targets)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert outputs.grad.isfinite().all()


def test_self_adaptive_training():
    """Huang et al. 2020, Algorithm 1: t from the one-hot label; weights max_j t_ij over their sum in the batch."""
    net, loss = model(), prepared(SelfAdaptive(start=1, momentum=0.9))
    memory = torch.eye(3, dtype=torch.float64)[EXAMPLES.targets]
    for epoch, rows in enumerate(ROWS, 1):
        loss.begin_epoch(epoch, lambda: None)
        drawn = loss.draw(EXAMPLES.select(torch.tensor(rows)))
        outputs = net(drawn.inputs[0])
        if epoch == 1:
            torch.testing.assert_close(loss(outputs, drawn.targets), cross_entropy(outputs, EXAMPLES.targets[rows]))
            torch.testing.assert_close(loss.memory.targets, memory)
            continue
        p = outputs.softmax(1)
        for i, row in enumerate(rows):
            memory[row] = 0.9 * memory[row] + 0.1 * p[i].detach()
        weights = memory[rows].max(1).values
        literal = -(weights * (memory[rows] * p.log()).sum(1)).sum() / weights.sum()
        ours = loss(outputs, drawn.targets).mean()
        torch.testing.assert_close(ours, literal)
        expected, = torch.autograd.grad(literal, net.weight, retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(ours, net.weight)[0], expected)
        torch.testing.assert_close(loss.memory.targets, memory)


@pytest.mark.parametrize("probe", [Uphill(0.5), Noise(0.5, draws=2, two_point=True)], ids=["sam", "nso"])
@pytest.mark.parametrize("recipe", [EarlyLearning(), SelfAdaptive(start=0)], ids=["elr", "sat"])
def test_updated_once_per_step_however_many_passes(probe, recipe):
    net, loss = model(), prepared(recipe)
    loss.begin_epoch(1, lambda: None)
    before = loss.memory.targets.clone()
    drawn = loss.draw(EXAMPLES)
    first = []
    net.register_forward_hook(lambda module, inputs, outputs: first.append(outputs.detach().softmax(1)))
    probe(net, MiniBatch(net, loss, drawn), torch.Generator().manual_seed(0))
    assert len(first) == probe.passes
    momentum = loss.memory.momentum
    torch.testing.assert_close(loss.memory.targets, momentum * before + (1 - momentum) * first[0])


def test_parts_of_a_batch_are_updated_as_they_come():
    """A batch that is cut for lack of memory gives the same targets as the whole one."""
    outputs = model()(EXAMPLES.inputs[0])
    whole, parts = prepared(EarlyLearning()), prepared(EarlyLearning())
    losses = whole(outputs, whole.draw(EXAMPLES).targets)
    targets = parts.draw(EXAMPLES).targets
    torch.testing.assert_close(torch.cat([parts(outputs[s], targets[s]) for s in (slice(0, 5), slice(5, 9))]), losses)
    assert torch.equal(whole.memory.targets, parts.memory.targets)


@pytest.mark.parametrize("recipe", [EarlyLearning(), SelfAdaptive(start=1)], ids=["elr", "sat"])
def test_resumed_it_goes_on(recipe):
    outputs = model()(EXAMPLES.inputs[0]).detach()

    def steps(loss, epochs):
        for epoch in epochs:
            loss.begin_epoch(epoch, lambda: None)
            losses = loss(outputs, loss.draw(EXAMPLES).targets)
        return losses
    one, other = prepared(recipe), prepared(recipe)
    steps(one, (1, 2))
    state = one.state()
    uninterrupted = steps(one, (3,))
    other.load(state)
    assert torch.equal(steps(other, (3,)), uninterrupted)
    third = prepared(recipe)
    third.load(state)  # within an epoch, which is not begun again
    assert torch.equal(third(outputs, third.draw(EXAMPLES).targets), uninterrupted)


@pytest.mark.parametrize(("call", "end"), [
    (lambda: EarlyLearning(strength=-1.0), "it must be at least 0"),
    (lambda: EarlyLearning(momentum=1.5), "it must lie between 0 and 1"),
    (lambda: SelfAdaptive(start=-1), "it must be at least 0"),
    (lambda: SelfAdaptive(momentum=-0.5), "it must lie between 0 and 1"),
    (lambda: EarlyLearning().prepare(Context.of(model())), "Context.of(…, examples=…)"),
    (lambda: SelfAdaptive().prepare(Context.of(model())), "Context.of(…, examples=…)"),
    (lambda: prepared(EarlyLearning()).draw(Batch(EXAMPLES.inputs, EXAMPLES.targets)),
     "their positions in the training data"),
])
def test_refused(call, end):
    with pytest.raises(InputError) as caught:
        call()
    assert str(caught.value).endswith(end)
