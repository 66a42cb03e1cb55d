"""Corrections of label noise that are bounded below, and the estimated confusion matrix."""

import logging
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genmeasure.data.batches import Batch, Batches
from genmeasure.data.label_noise import inverse_confusion, noisy_labels, symmetric_confusion
from genmeasure.errors import InputError
from genmeasure.losses import cross_entropy
from genmeasure.training.algorithm import get_algorithm
from genmeasure.training.context import Context
from genmeasure.training.dual_t import anchors, dual_t
from genmeasure.training.evaluate import predict
from genmeasure.training.examples import whole
from genmeasure.training.loop import Settings, fine_tune
from genmeasure.training.losses.consistent import Consistent, ForwardCorrected, NonNegativeConsistent, corrected

TARGETS = torch.tensor([0, 1, 2, 3, 4, 0, 3])
SKEWED = torch.rand(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 2 * torch.eye(5)
SKEWED /= SKEWED.sum(1, keepdim=True)


def logits():
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def noisy(train, rate):
    labels = noisy_labels(f"symmetric:rate={rate}", train.labels, 10, seed=0)
    inputs = torch.cat([batch.inputs[0] for batch in train])
    return Batches.from_arrays(inputs, labels.labels, labels.clean), labels


def test_forward_correction():
    literal = torch.stack([-(p @ SKEWED)[t].log() for p, t in zip(logits().softmax(1), TARGETS, strict=True)])
    torch.testing.assert_close(ForwardCorrected(SKEWED)(logits(), TARGETS), literal)
    torch.testing.assert_close(ForwardCorrected(torch.eye(5))(logits(), TARGETS), cross_entropy(logits(), TARGETS))


def test_forward_correction_has_the_right_minimiser():
    """Patrini et al. 2017, Theorem 2: its mean over the noise is least at the distribution of the true label."""
    truth = torch.tensor([0.1, 0.5, 0.2, 0.15, 0.05], dtype=torch.float64)
    outputs = truth.log().requires_grad_()
    loss = sum((truth @ SKEWED)[given] * ForwardCorrected(SKEWED)(outputs[None], torch.tensor([given]))[0]
               for given in range(5))
    gradient, = torch.autograd.grad(loss, outputs)
    torch.testing.assert_close(gradient, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-15)


def test_forward_correction_with_impossible_labels_stays_finite():
    flips = torch.tensor([[0.6, 0.4, 0.0], [0.0, 0.6, 0.4], [0.4, 0.0, 0.6]], dtype=torch.float64)
    outputs = (1000 * torch.eye(3, dtype=torch.float64)).requires_grad_()
    losses = ForwardCorrected(flips)(outputs, torch.tensor([0, 1, 2]))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert outputs.grad.isfinite().all()


def test_non_negative_correction():
    """Each class's part of the batch mean is a mean of losses in expectation, and is kept from falling below 0."""
    inverse = inverse_confusion(symmetric_confusion(0.6, 5))
    outputs = 4 * logits()
    parts = [(inverse[TARGETS, j] * -outputs.log_softmax(1)[:, j]).mean().item() for j in range(5)]
    assert min(parts) < 0 < max(parts)
    loss = NonNegativeConsistent(inverse)(outputs, TARGETS).mean().item()
    assert loss == pytest.approx(sum(max(0.0, part) for part in parts))


def test_non_negative_correction_is_the_consistent_loss_where_nothing_is_negative():
    inverse, outputs, every = inverse_confusion(SKEWED), 0.01 * logits()[:5], torch.arange(5)
    parts = (inverse[every] * -outputs.log_softmax(1)).mean(0)
    assert (parts > 0).all()
    torch.testing.assert_close(NonNegativeConsistent(inverse)(outputs, every),
                               corrected(-outputs.log_softmax(1), every, inverse))


def test_parts_are_unbiased_by_enumeration():
    """E over the given labels of class j's part = the loss of class j where j is the true class, else 0."""
    inverse, losses = inverse_confusion(SKEWED), -logits().log_softmax(1)
    mean = sum(SKEWED[TARGETS, given, None] * inverse[torch.full_like(TARGETS, given)] * losses for given in range(5))
    torch.testing.assert_close(mean, F.one_hot(TARGETS, 5) * losses)


def test_unbounded_losses_are_announced(caplog):
    context = Context.of(nn.Linear(2, 5), confusion=symmetric_confusion(0.2, 5))
    with caplog.at_level(logging.WARNING, "genmeasure"):
        for quiet in (Consistent(floor=-1.0), Consistent(correction="forward"), Consistent(correction="non-negative")):
            quiet.prepare(context)
        Consistent().prepare(Context.of(nn.Linear(2, 5), confusion=torch.eye(5)))
        assert not caplog.records
        Consistent().prepare(context)
    assert caplog.messages[0].startswith("the consistent loss is unbounded below (F^-1 has entries down to -0.0667)")
    assert caplog.messages[0].endswith("or clip gradients")


def literal_dual_t(probabilities, labels, quantile=0.97):
    """Yao et al. 2020, in numpy, one class at a time."""
    k = probabilities.shape[1]
    club, spade = np.zeros((k, k)), np.zeros((k, k))
    for i in range(k):
        robust = probabilities[:, i].copy()
        robust[robust >= np.quantile(robust, quantile, method="higher")] = 0
        club[i] = probabilities[robust.argmax()]
    predicted = probabilities.argmax(1)
    for i in range(k):
        if (predicted == i).any():
            spade[i] = [(labels[predicted == i] == j).mean() for j in range(k)]
    product = club @ spade
    return product / product.sum(1, keepdims=True)


def test_dual_t_is_its_recipe():
    generator = torch.Generator().manual_seed(0)
    probabilities = (3 * torch.randn(301, 4, generator=generator, dtype=torch.float64)).softmax(1)
    labels = torch.randint(4, (301,), generator=generator)
    before = probabilities.clone()
    found = dual_t(probabilities, labels)
    torch.testing.assert_close(found, torch.from_numpy(literal_dual_t(probabilities.numpy(), labels.numpy())))
    assert torch.equal(probabilities, before)  # the outliers are left out in a copy


def test_a_class_that_is_never_predicted_takes_no_part():
    generator = torch.Generator().manual_seed(0)
    probabilities = (3 * torch.randn(301, 4, generator=generator, dtype=torch.float64)).softmax(1)
    probabilities[:, 2] *= 1e-6
    probabilities /= probabilities.sum(1, keepdim=True)
    labels = torch.randint(4, (301,), generator=torch.Generator().manual_seed(1))
    assert anchors(probabilities)[2] == probabilities[:, 2].argmax()
    found = dual_t(probabilities, labels)
    assert found.isfinite().all()
    torch.testing.assert_close(found.sum(1), torch.ones(4, dtype=torch.float64))


def test_anchors_of_many_classes_are_examples_of_these_classes():
    """Of 50 equal classes, 3 % of all examples are more than one class."""
    clean = torch.arange(1000) % 50
    probabilities = (8 * F.one_hot(clean, 50) + torch.randn(1000, 50, generator=torch.Generator().manual_seed(0)))
    found = anchors(probabilities.double().softmax(1))
    assert torch.equal(clean[found], torch.arange(50))


def test_dual_t_of_a_sure_model_is_what_was_counted():
    clean = torch.arange(30000) % 3
    noisy = noisy_labels("class-conditional", clean, 3, confusion=SKEWED[:3, :3] / SKEWED[:3, :3].sum(1, keepdim=True))
    found = dual_t(F.one_hot(clean, 3).double() * (1 - 1e-9) + 1e-9 / 3, noisy.labels)
    torch.testing.assert_close(found, noisy.realised_confusion, rtol=1e-6, atol=1e-8)


def test_dual_t_of_a_calibrated_model_counts_the_noise_twice():
    """Where the probabilities are those of the noisy labels themselves, the recipe gives F F: known, and kept."""
    matrix = symmetric_confusion(0.3, 3)
    clean = torch.arange(3000) % 3
    labels = torch.cat([torch.repeat_interleave(torch.arange(3), (1000 * row).round().long()) for row in matrix])
    labels = labels.reshape(3, 1000).T.flatten()  # each class in its exact proportions
    jitter = torch.linspace(0, 1e-6, 3000, dtype=torch.float64)[:, None] * F.one_hot(clean, 3)
    torch.testing.assert_close(dual_t(matrix[clean] + jitter, labels), matrix @ matrix, rtol=0, atol=1e-5)


def test_dual_t_in_a_run(net, train):
    """One plain run from the same start, whose matrix is the loss's; training then begins at the start."""
    data, _ = noisy(train, 0.2)
    settings = Settings(epochs=6, learning_rate=1e-2, device="cpu")
    result = fine_tune(net, get_algorithm("consistent-loss", confusion="dual-t", floor=-1.0), data, settings=settings)
    plain = fine_tune(net, "plain", data, settings=settings).model
    expected = dual_t(predict(plain, whole(data), 32).double().softmax(1), data.labels)
    found = result.algorithm.loss.confusion
    torch.testing.assert_close(found, expected)
    assert found.diagonal().mean() > 0.5
    again = fine_tune(net, get_algorithm("consistent-loss", floor=-1.0), data, settings=settings, confusion=found)
    assert all(torch.equal(a, b) for a, b in zip(result.model.parameters(), again.model.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(result.model.parameters(), plain.parameters(), strict=True))


def test_combination_with_constraints(net, train):
    data, labels = noisy(train, 0.2)
    algorithm = get_algorithm("consistent-layer-ball", radius=0.5, head_radius=2.0, correction="non-negative")
    result = fine_tune(net, algorithm, data, settings=Settings(epochs=3, learning_rate=1e-2, device="cpu"),
                       confusion=labels.confusion)
    assert isinstance(result.algorithm.loss, NonNegativeConsistent)
    for name in ("conv1", "conv2"):
        moved = result.model.get_submodule(name).weight - net.get_submodule(name).weight
        assert moved.norm().item() <= 0.5 + 1e-5
    assert result.model.head.weight.norm().item() <= 2.0 + 1e-5


SINGULAR = symmetric_confusion(0.8, 5)


@pytest.mark.parametrize("correction", ["backward", "non-negative"])
def test_singular_matrices_are_refused_with_their_condition_number(correction):
    with pytest.raises(InputError, match=r"condition number (\d.*e\+|inf).*than \(classes - 1\) / classes$"):
        Consistent(correction=correction).prepare(Context.of(nn.Linear(2, 5), confusion=SINGULAR))


def test_forward_correction_takes_singular_matrices():
    assert isinstance(Consistent(correction="forward").prepare(Context.of(nn.Linear(2, 5), confusion=SINGULAR)),
                      ForwardCorrected)


@pytest.mark.parametrize(("call", "end"), [
    (lambda: Consistent(correction="foward"), "did you mean 'forward'?"),
    (lambda: Consistent(confusion="dual"), "did you mean 'dual-t'?"),
    (lambda: Consistent(floor=0.0, correction="forward"), "a floor goes with correction='backward' only"),
    (lambda: Consistent(confusion="dual-t").prepare(Context.of(nn.Linear(2, 5))),
     "pass confusion=… of genmeasure.training.dual_t.dual_t"),
    (lambda: dual_t(torch.rand(5, 2), torch.zeros(4)), "one column for each class"),
    (lambda: Consistent(correction="forward").prepare(Context.of(
        nn.Linear(2, 2), confusion=torch.tensor([[1.0, 0], [1, 0]]),
        examples=Batch((torch.zeros(2, 2),), torch.tensor([0, 1])))), "of the noise that was really made"),
])
def test_refused(call, end):
    with pytest.raises(InputError) as caught:
        call()
    assert str(caught.value).endswith(end)


def test_closed_form_of_the_symmetric_inverse():
    a = 1 / (1 - 0.4 * 5 / 4)
    expected = a * torch.eye(5, dtype=torch.float64) + (1 - a) / 5
    torch.testing.assert_close(inverse_confusion(symmetric_confusion(0.4, 5)), expected)
    assert math.isclose(a, 2.0)
