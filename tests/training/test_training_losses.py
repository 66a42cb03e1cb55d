"""Training losses against literal twins."""

import math

import pytest
import scipy.stats
import torch
from torch import nn

from genmeasure.data.batches import Batch
from genmeasure.data.label_noise import inverse_confusion
from genmeasure.errors import InputError
from genmeasure.losses import cross_entropy
from genmeasure.training.context import Context
from genmeasure.training.losses.consistent import Consistent, ConsistentCrossEntropy, corrected
from genmeasure.training.losses.cross_entropy import CrossEntropy
from genmeasure.training.losses.label_smoothing import SmoothedCrossEntropy
from genmeasure.training.losses.mixup import MixedCrossEntropy, MixUp, mixed


@pytest.fixture
def outputs():
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def targets():
    return torch.tensor([0, 1, 2, 3, 4, 0, 3])


def symmetric(k, rate):
    return torch.eye(k, dtype=torch.float64) * (1 - rate - rate / (k - 1)) + rate / (k - 1)


def test_consistent_golden():
    matrix = inverse_confusion(symmetric(5, 0.2))
    assert matrix[0, 0].item() == pytest.approx(1.2666667)
    assert matrix[0, 1].item() == pytest.approx(-0.0666667, rel=1e-6)
    losses = torch.tensor([[1.0, 2, 3, 4, 5]], dtype=torch.float64).expand(5, 5)
    assert corrected(losses, torch.arange(5), matrix).tolist() == pytest.approx([1 / 3, 5 / 3, 3, 13 / 3, 17 / 3])


def test_consistent_is_unbiased(outputs, targets):
    """The sum over every possible given label, weighted by its probability, is the loss on the true label."""
    confusion = torch.rand(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 2 * torch.eye(5)
    confusion /= confusion.sum(1, keepdim=True)
    loss = ConsistentCrossEntropy(inverse_confusion(confusion))
    mean = sum(confusion[targets, given] * loss(outputs, torch.full_like(targets, given)) for given in range(5))
    torch.testing.assert_close(mean, cross_entropy(outputs, targets))


def test_consistent_without_noise_is_cross_entropy(outputs, targets):
    loss = ConsistentCrossEntropy(inverse_confusion(torch.eye(5)))
    torch.testing.assert_close(loss(outputs, targets), cross_entropy(outputs, targets))


def test_consistent_floor():
    outputs = torch.tensor([[50.0, 0, 0]], dtype=torch.float64, requires_grad=True)
    matrix = inverse_confusion(symmetric(3, 0.2))
    assert ConsistentCrossEntropy(matrix)(outputs, torch.tensor([0])).item() < -5
    floored = ConsistentCrossEntropy(matrix, floor=-1.0)(outputs, torch.tensor([0]))
    floored.backward()
    assert floored.item() == -1.0
    assert not outputs.grad.any()


@pytest.mark.parametrize(("confusion", "end"), [
    (None, "[classes, classes] with the true label in rows"),
    (symmetric(5, 0.2), "for this model it must be (3, 3)"),
    (torch.tensor([[0.5, 0.5, 0.0], [0, 1, 0], [0, 0.2, 0.9]]),
     "each row must hold probabilities that add up to 1"),
    (torch.tensor([[1.5, -0.5, 0.0], [0, 1, 0], [0, 0, 1]]),
     "each row must hold probabilities that add up to 1"),
    (symmetric(3, 2 / 3), "or a rate other than (classes - 1) / classes"),
])
def test_consistent_refuses(confusion, end):
    context = Context.of(nn.Linear(2, 3), confusion=confusion)
    with pytest.raises(InputError) as caught:
        Consistent().prepare(context)
    assert str(caught.value).endswith(end)


def test_label_smoothing(outputs, targets):
    literal = [0.7 * -p[t].log() + 0.3 / 5 * -p.log().sum() for p, t in zip(outputs.softmax(1), targets, strict=True)]
    torch.testing.assert_close(SmoothedCrossEntropy(0.3)(outputs, targets), torch.stack(literal))
    torch.testing.assert_close(SmoothedCrossEntropy(0.0)(outputs, targets), CrossEntropy()(outputs, targets))


@pytest.mark.parametrize("proportion", [0.0, 1.0])
def test_mixup_with_a_whole_proportion_is_plain(proportion, outputs, targets):
    batch = Batch(({"x": outputs},), targets)
    partners = torch.tensor([3, 0, 1, 2, 6, 5, 4])
    rows = torch.arange(7) if proportion else partners
    both = mixed(batch, partners, proportion, 5)
    assert torch.equal(both.inputs[0]["x"], outputs[rows])
    torch.testing.assert_close(MixedCrossEntropy(0.2, 5)(outputs[rows], both.targets),
                               cross_entropy(outputs[rows], targets[rows]))


def test_mixup_mixes_losses(outputs, targets):
    partners = torch.tensor([3, 0, 1, 2, 6, 5, 4])
    both = mixed(Batch((outputs,), targets), partners, 0.3, 5)
    torch.testing.assert_close(both.inputs[0], 0.3 * outputs + 0.7 * outputs[partners])
    torch.testing.assert_close(MixedCrossEntropy(0.2, 5)(outputs, both.targets),
                               0.3 * cross_entropy(outputs, targets) + 0.7 * cross_entropy(outputs, targets[partners]))


def test_mixup_draws_from_the_beta_distribution():
    loss, generator = MixUp(0.4).prepare(Context.of(nn.Linear(1, 2))), torch.Generator().manual_seed(0)
    batch = Batch((torch.tensor([[0.0], [1.0]], dtype=torch.float64),), torch.tensor([0, 1]))
    drawn = []
    while len(drawn) < 500:
        both = loss.draw(batch, generator)
        torch.testing.assert_close(both.targets[:, 1:], both.inputs[0])
        if not torch.equal(both.inputs[0], batch.inputs[0]):  # its partner was the other one
            drawn.append(1 - both.inputs[0][0].item())
    assert scipy.stats.kstest(drawn, scipy.stats.beta(0.4, 0.4).cdf).pvalue > 0.01


def test_mixup_refuses_tokens():
    with pytest.raises(InputError) as caught:
        MixedCrossEntropy(0.2, 2).draw(Batch({"input_ids": torch.ones(2, 3, dtype=torch.int64)}, torch.tensor([0, 1])))
    assert str(caught.value).endswith("choose another algorithm for tokens")


def test_plain_is_in_nats():
    assert CrossEntropy()(torch.zeros(1, 4), torch.tensor([2])).item() == pytest.approx(math.log(4))
