"""Losses that withstand label noise, against literal twins, limits and sums over every label."""

import math

import pytest
import torch
import torch.nn.functional as F

from genmeasure.data.batches import Batch
from genmeasure.errors import InputError
from genmeasure.losses import cross_entropy
from genmeasure.training.losses.active_passive import ActivePassive, mean_absolute_error, normalized_cross_entropy
from genmeasure.training.losses.generalized_cross_entropy import GeneralizedCrossEntropy
from genmeasure.training.losses.generalized_jensen_shannon import GeneralizedJensenShannon, jensen_shannon
from genmeasure.training.losses.symmetric_cross_entropy import SymmetricCrossEntropy, reverse_cross_entropy

TARGETS = torch.tensor([0, 1, 2, 3, 4, 0, 3])
EVERY = (GeneralizedCrossEntropy(), GeneralizedCrossEntropy(q=0.7, threshold=0.5), SymmetricCrossEntropy(),
         ActivePassive(), ActivePassive(passive="mean-absolute-error"), GeneralizedJensenShannon())


def logits(seed=0):
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_label(probabilities):
    return probabilities[torch.arange(7), TARGETS]


@pytest.mark.parametrize("q", [0.1, 0.7, 1.0])
def test_generalized_cross_entropy(q):
    p = of_label(logits().softmax(1))
    torch.testing.assert_close(GeneralizedCrossEntropy(q)(logits(), TARGETS), (1 - p**q) / q)


def test_generalized_cross_entropy_lies_between_two_losses():
    nats, p = cross_entropy(logits(), TARGETS), logits().softmax(1)
    assert torch.equal(GeneralizedCrossEntropy(0.0)(logits(), TARGETS), nats)
    torch.testing.assert_close(GeneralizedCrossEntropy(1e-9)(logits(), TARGETS), nats)
    half = 0.5 * (p - F.one_hot(TARGETS, 5)).abs().sum(1)
    torch.testing.assert_close(GeneralizedCrossEntropy(1.0)(logits(), TARGETS), half)


def test_gradient_of_generalized_cross_entropy_is_weighted():
    """grad L_q = p^q grad CE (Zhang, Sabuncu 2018)."""
    outputs = logits().requires_grad_()
    ours, = torch.autograd.grad(GeneralizedCrossEntropy(0.7)(outputs, TARGETS).sum(), outputs)
    plain, = torch.autograd.grad(cross_entropy(outputs, TARGETS).sum(), outputs)
    torch.testing.assert_close(ours, of_label(logits().softmax(1))[:, None]**0.7 * plain)


def test_truncation_leaves_improbable_labels_out():
    outputs = logits().requires_grad_()
    losses = GeneralizedCrossEntropy(0.7, threshold=0.2)(outputs, TARGETS)
    p = of_label(logits().softmax(1))
    out = p <= 0.2
    assert 0 < out.sum() < 7
    torch.testing.assert_close(losses, torch.where(out, (1 - 0.2**0.7) / 0.7, (1 - p**0.7) / 0.7))
    losses.sum().backward()
    assert torch.equal(outputs.grad.any(1), ~out)


def test_symmetric_cross_entropy():
    p, label = logits().softmax(1), F.one_hot(TARGETS, 5).double()
    log_label = torch.where(label > 0, 0.0, -4.0).double()
    literal = -0.1 * (label * p.log()).sum(1) - 1.0 * (p * log_label).sum(1)
    torch.testing.assert_close(SymmetricCrossEntropy()(logits(), TARGETS), literal)


def test_reverse_cross_entropy_with_minus_two_is_the_absolute_error():
    error = (logits().softmax(1) - F.one_hot(TARGETS, 5)).abs().sum(1)
    torch.testing.assert_close(reverse_cross_entropy(logits(), TARGETS, -2.0), error)
    torch.testing.assert_close(mean_absolute_error(logits(), TARGETS), error)


@pytest.mark.parametrize("passive", ["reverse-cross-entropy", "mean-absolute-error"])
def test_active_passive(passive):
    p = logits().softmax(1)
    wrong = 1 - of_label(p)
    literal = 0.5 * of_label(p.log()) / p.log().sum(1) + 3 * (4 if passive == "reverse-cross-entropy" else 2) * wrong
    torch.testing.assert_close(ActivePassive(0.5, 3.0, passive)(logits(), TARGETS), literal)


@pytest.mark.parametrize(("loss", "total"), [
    (normalized_cross_entropy, 1), (mean_absolute_error, 8), (lambda o, t: reverse_cross_entropy(o, t, -4.0), 16),
    (GeneralizedCrossEntropy(1.0), 4), (ActivePassive(), 17)])
def test_symmetric_losses_tolerate_symmetric_noise(loss, total):
    """Summed over every label they are constant (Ghosh et al. 2017), so the mean over symmetric noise of rate r, label
    by label, is (1 - r k/(k-1)) times the clean loss plus a constant."""
    each = torch.stack([loss(logits(), torch.full_like(TARGETS, label)) for label in range(5)], 1)
    torch.testing.assert_close(each.sum(1), torch.full((7,), float(total), dtype=torch.float64))
    noise = torch.full((5, 5), 0.4 / 4, dtype=torch.float64).fill_diagonal_(0.6)
    torch.testing.assert_close((noise[TARGETS] * each).sum(1), 0.5 * of_label(each) + 0.1 * total)


def test_cross_entropy_is_not_symmetric():
    sums = sum(cross_entropy(logits(), torch.full_like(TARGETS, label)) for label in range(5))
    assert sums.std() > 0.1


def divergence(views, label_weight):
    """sum_i w_i KL(p_i ‖ m) / Z, term by term."""
    weights = [label_weight] + [(1 - label_weight) / len(views)] * len(views)
    distributions = [F.one_hot(TARGETS, 5).double(), *(v.softmax(1) for v in views)]
    mean = sum(w * p for w, p in zip(weights, distributions, strict=True))
    total = sum(w * torch.where(p > 0, p * (p / mean).log(), 0.0).sum(1)
                for w, p in zip(weights, distributions, strict=True))
    return total / (-(1 - label_weight) * math.log(1 - label_weight))


@pytest.mark.parametrize("label_weight", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("views", [1, 2, 3])
def test_jensen_shannon(views, label_weight):
    several = [logits(seed) for seed in range(views)]
    torch.testing.assert_close(jensen_shannon(several, TARGETS, label_weight), divergence(several, label_weight))


def test_jensen_shannon_lies_between_two_losses():
    torch.testing.assert_close(jensen_shannon([logits()], TARGETS, 1e-8), cross_entropy(logits(), TARGETS), rtol=1e-6,
                               atol=0)
    p = of_label(logits().softmax(1))
    # towards 1 the distance falls as 1/ln(1 - pi_1) only
    far, near = (jensen_shannon([logits()], TARGETS, 1 - e) - (1 - p) for e in (1e-3, 1e-6))
    assert far.abs().max() < 0.35
    torch.testing.assert_close(near, far * math.log(1e-3) / math.log(1e-6), rtol=0.05, atol=1e-4)


def test_equal_views_count_as_one():
    torch.testing.assert_close(jensen_shannon([logits(), logits()], TARGETS, 0.3),
                               jensen_shannon([logits()], TARGETS, 0.3))


def test_views_stand_next_to_each_other():
    loss = GeneralizedJensenShannon(0.3, views=2, sigma=0.5)
    batch = Batch((logits(),), TARGETS, rows=torch.arange(10, 17))
    drawn = loss.draw(batch, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.rows, torch.arange(10, 17).repeat_interleave(2))
    noise = drawn.inputs[0] - logits().repeat_interleave(2, 0)
    assert not torch.equal(noise[0], noise[1])
    assert noise.std().item() == pytest.approx(0.5, rel=0.3)
    outputs = torch.tanh(drawn.inputs[0])
    each = jensen_shannon([outputs[::2], outputs[1::2]], TARGETS, 0.3)
    torch.testing.assert_close(loss(outputs, drawn.targets), each.repeat_interleave(2))
    torch.testing.assert_close(loss(outputs[:4], drawn.targets[:4]), each[:2].repeat_interleave(2))
    for torn in (slice(0, 5), slice(1, 5)):
        with pytest.raises(InputError, match="cut it at whole examples only$"):
            loss(outputs[torn], drawn.targets[torn])


def test_one_view_without_noise_leaves_the_batch_alone():
    batch = Batch(({"input_ids": torch.ones(7, 3, dtype=torch.int64)},), TARGETS)
    assert GeneralizedJensenShannon().draw(batch) is batch
    with pytest.raises(InputError, match="so choose sigma=0$"):
        GeneralizedJensenShannon(sigma=0.1).draw(batch)


@pytest.mark.parametrize("loss", EVERY, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_stay_finite(loss, dtype):
    outputs = (1000 * logits()).to(dtype).requires_grad_()
    losses = loss(outputs, TARGETS)
    losses.sum().backward()
    assert losses.shape == (7,)
    assert losses.dtype == dtype
    assert losses.isfinite().all()
    assert outputs.grad.isfinite().all()


@pytest.mark.parametrize(("make", "end"), [
    (lambda: GeneralizedCrossEntropy(1.5), "it must lie between 0 and 1"),
    (lambda: GeneralizedCrossEntropy(threshold=1.0), "a probability from 0 to below 1 is needed"),
    (lambda: SymmetricCrossEntropy(alpha=-1), "both must be at least 0"),
    (lambda: SymmetricCrossEntropy(log_zero=0.0), "what stands for ln 0 must be below 0"),
    (lambda: ActivePassive(passive="mean-absolute-eror"), "did you mean 'mean-absolute-error'?"),
    (lambda: GeneralizedJensenShannon(1.0), "it must lie above 0 and below 1"),
    (lambda: GeneralizedJensenShannon(views=0), "at least 1 view is needed"),
    (lambda: GeneralizedJensenShannon(sigma=-0.1), "a standard deviation must be at least 0"),
])
def test_bad_parameters(make, end):
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).endswith(end)
