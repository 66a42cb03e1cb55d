"""What the loss of every registered algorithm promises in a loop of one's own."""

import pytest
import torch

from genmeasure import registry
from genmeasure.training.algorithm import get_algorithm
from genmeasure.training.context import Context
from genmeasure.training.examples import whole
from genmeasure.training.losses.cross_entropy import CrossEntropy

NAMES = [m.name for m in registry.algorithm if not isinstance(get_algorithm(m.name).loss, CrossEntropy)]
ACTIVE = {"self-labeling": {"correct_from": 2, "reweight_from": 1, "threshold": 0.1, "normalization": "data",
                            "averaging": 0.5},
          "self-adaptive-training": {"start": 1}, "generalized-jensen-shannon": {"views": 2, "sigma": 0.1},
          "adversarial-training": {"steps": 2}}
ROWS = torch.arange(48).split(16)


def test_losses_with_memory_are_among_them():
    assert {"self-labeling", "early-learning-regularization", "self-adaptive-training", "mixup"} <= set(NAMES)


def start(name, net, train, confusion):
    examples = whole(train)
    context = Context.of(net, examples=examples, confusion=confusion)
    return get_algorithm(name, **ACTIVE.get(name, {})).loss.prepare(context), examples


def epoch(number, loss, net, examples, generator, stop=3):
    """The losses of the steps of an epoch, each followed by a plain step."""
    def predict():
        return net(examples.inputs[0]).detach()
    found = []
    loss.begin_epoch(number, predict)
    for rows in ROWS[:stop]:
        found.append(step(loss, net, examples.select(rows), generator))
    return found


def step(loss, net, batch, generator):
    drawn = loss.draw(batch, generator, net)
    losses = loss(net(drawn.inputs[0]), drawn.targets)
    assert losses.shape == (len(drawn),)
    net.zero_grad(set_to_none=True)
    losses.mean().backward()
    with torch.no_grad():
        for p in net.parameters():
            p -= 0.05 * p.grad
    return losses.detach()


@pytest.mark.parametrize("name", NAMES)
def test_in_a_loop_of_ones_own(name, net, train, confusion):
    net.eval()
    loss, examples = start(name, net, train, confusion)
    targets, generator = examples.targets.clone(), torch.Generator().manual_seed(0)
    losses = torch.cat([torch.cat(epoch(number, loss, net, examples, generator)) for number in (1, 2, 3)])
    assert losses.isfinite().all()
    assert torch.equal(examples.targets, targets)


@pytest.mark.parametrize("name", NAMES)
def test_what_it_remembers_is_in_its_state(name, net, train, confusion):
    """A loss that takes up the state of another one goes on as that would have, within an epoch and after it."""
    net.eval()
    loss, examples = start(name, net, train, confusion)
    generator = torch.Generator().manual_seed(0)
    epoch(1, loss, net, examples, generator)
    epoch(2, loss, net, examples, generator, stop=1)
    state, weights = loss.state(), {k: v.clone() for k, v in net.state_dict().items()}
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    state = {k: v.clone() for k, v in state.items()}
    position = generator.get_state()

    def rest(loss):
        within = [step(loss, net, examples.select(rows), generator) for rows in ROWS[1:]]
        return torch.cat([*within, *epoch(3, loss, net, examples, generator)])
    uninterrupted = rest(loss)
    other, _ = start(name, net, train, confusion)
    net.load_state_dict(weights)
    generator.set_state(position)
    other.load(state)
    assert torch.equal(rest(other), uninterrupted)


@pytest.mark.parametrize("name", NAMES)
def test_narrow_outputs(name, net, train, confusion):
    loss, examples = start(name, net.eval(), train, confusion)
    loss.begin_epoch(2, lambda: net(examples.inputs[0]).detach())
    drawn = loss.draw(examples.select(ROWS[0]), torch.Generator().manual_seed(0), net)
    outputs = (20 * net(drawn.inputs[0])).detach().bfloat16().requires_grad_()
    losses = loss(outputs, drawn.targets)
    losses.mean().backward()
    assert losses.isfinite().all()
    assert outputs.grad.isfinite().all()
