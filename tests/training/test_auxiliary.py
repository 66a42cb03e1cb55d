"""Scores of an auxiliary model."""

import torch
from torch import nn

from genmeasure.data.batches import Batches
from genmeasure.data.label_noise import noisy_labels
from genmeasure.training.auxiliary import auxiliary_scores


def test_scores_are_those_of_evaluation_mode(net, train):
    net.train()
    net.bn1.eval()
    modes = [m.training for m in net.modules()]
    buffers = {k: v.clone() for k, v in net.named_buffers()}
    scores = auxiliary_scores(net, train)
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(buffers[k], v) for k, v in net.named_buffers())
    assert not scores.requires_grad
    net.eval()
    inputs = torch.cat([batch.inputs[0] for batch in train])
    torch.testing.assert_close(scores, net(inputs).detach())
    noisy = noisy_labels("correlated", train.labels, 10, predictions=scores)
    assert torch.equal(noisy.labels, scores.argmax(1))


def test_the_order_is_that_of_the_examples():
    doubled = nn.Linear(1, 1, bias=False)
    nn.init.constant_(doubled.weight, 2.0)
    x = torch.arange(10.0).reshape(10, 1)
    batches = Batches.from_arrays(x, torch.zeros(10, dtype=torch.int64), batch_size=3)
    assert torch.equal(auxiliary_scores(doubled, batches), 2 * x)
