"""Label noise and its inverse, against worked values and against the mechanism itself."""

import re

import numpy as np
import pytest
import torch

from genmeasure.data.label_noise.confusion import inverse_confusion
from genmeasure.data.label_noise.symmetric import symmetric, symmetric_confusion
from genmeasure.errors import InputError


def ends(sentence):
    return re.escape(sentence) + "$"


def norm(confusion):
    """‖(F^-1)^T‖_{1,inf}: the largest absolute row sum of F^-1."""
    return inverse_confusion(confusion).abs().sum(1).max().item()


def test_inverse_worked_example():
    inverse = inverse_confusion(symmetric_confusion(0.2, 5))
    assert inverse.diagonal().tolist() == pytest.approx([19 / 15] * 5, abs=1e-12)
    assert inverse[0, 1:].tolist() == pytest.approx([-1 / 15] * 4, abs=1e-12)
    corrected = inverse @ torch.tensor([1.0, 2, 3, 4, 5], dtype=torch.float64)
    assert corrected.tolist() == pytest.approx([1 / 3, 5 / 3, 3, 13 / 3, 17 / 3], abs=1e-12)


@pytest.mark.parametrize(("classes", "rate", "value"), [
    (2, .2, 1.66667), (2, .3, 2.5), (2, .4, 5.0), (5, .2, 1.53333), (5, .4, 2.6), (5, .6, 5.8), (10, .4, 2.44),
    (67, .2, 1.5019011), (67, .4, 2.3469388), (67, .6, 4.0697674), (67, .8, 9.5161290), (100, .3, 1.8608696),
    (100, .4, 2.3423729)])
def test_norm_table(classes, rate, value):
    confusion = symmetric_confusion(rate, classes)
    assert norm(confusion) == pytest.approx(value, rel=3e-6)
    a = 1 / (1 - rate * classes / (classes - 1))
    assert norm(confusion) == pytest.approx(a + (classes - 2) * (a - 1) / classes, rel=1e-10)


@pytest.mark.parametrize(("classes", "rate", "value"), [(5, .2, 1.4), (5, .4, 31 / 15), (5, .6, 3.4),
                                                        (67, .2, 1.4925373)])
def test_norm_table_when_the_true_class_is_included(classes, rate, value):
    assert norm(symmetric_confusion(rate, classes, include_true=True)) == pytest.approx(value, rel=1e-7)


@pytest.mark.parametrize(("classes", "rate", "include_true"), [(5, .8, False), (2, .5, False), (4, 1.0, True)])
def test_singular_is_refused(classes, rate, include_true):
    with pytest.raises(InputError, match=r"condition number (\d.*e\+|inf).*" + ends(
            "use labels with less noise, or a rate other than (classes - 1) / classes")):
        inverse_confusion(symmetric_confusion(rate, classes, include_true=include_true))


def test_condition_number_is_named():
    inverse_confusion(symmetric_confusion(0.5 - 0.001, 2))  # condition number 500
    with pytest.raises(InputError, match=re.escape("has condition number 2e+03, more than 1e+03,")):
        inverse_confusion(symmetric_confusion(0.5 - 0.00025, 2))


@pytest.mark.parametrize(("confusion", "end"), [
    (torch.ones(2, 3) / 3, "with one row and one column for each class"),
    (torch.eye(3)[0], "with one row and one column for each class"),
    (torch.eye(2) * 2, "each row must hold probabilities that add up to 1"),
    ([[1.5, -0.5], [0, 1]], "each row must hold probabilities that add up to 1"),
    ([[float("nan"), 1], [0, 1]], "each row must hold probabilities that add up to 1"),
])
def test_no_confusion_matrix(confusion, end):
    with pytest.raises(InputError, match=ends(end)):
        inverse_confusion(confusion)


@pytest.mark.parametrize("include_true", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.2, 0.29, 1.0])
def test_number_drawn_and_bookkeeping(rate, include_true):
    clean = torch.arange(100) % 5
    noisy = symmetric(clean, 5, rate=rate, seed=0, include_true=include_true)
    assert torch.equal(noisy.clean, clean)
    assert torch.equal(noisy.flipped, noisy.labels != clean)
    assert noisy.labels.min() >= 0
    assert noisy.labels.max() < 5
    drawn = round(100 * rate)  # 29, although 0.29 * 100 is 28.999…
    if include_true:
        assert noisy.flipped.sum() <= drawn
    else:
        assert noisy.flipped.sum() == drawn
    assert noisy.realised_rate == noisy.flipped.sum().item() / 100
    assert torch.allclose(noisy.confusion.sum(1), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-15)
    wrong = drawn / 100 * (4 / 5 if include_true else 1)
    assert noisy.confusion.diagonal().tolist() == pytest.approx([1 - wrong] * 5, abs=1e-15)


def test_confusion_counts_the_floor():
    assert symmetric([0, 1, 0, 1, 1], 2, rate=0.5).confusion[0, 1] == 2 / 5
    assert symmetric([0, 1, 0, 1, 1], 2, rate=0.5).flipped.sum() == 2


@pytest.mark.parametrize("include_true", [False, True])
def test_confusion_is_that_of_the_mechanism(include_true):
    """Calibrated: the pooled counts over seeds lie within five standard errors of F, entry by entry."""
    clean = torch.cat([torch.zeros(30), torch.ones(10), torch.full((7,), 2)]).long()
    seeds = 400
    counts = torch.zeros(3, 3, dtype=torch.float64)
    for seed in range(seeds):
        labels = symmetric(clean, 3, rate=0.4, seed=seed, include_true=include_true)
        counts += torch.bincount(clean * 3 + labels.labels, minlength=9).reshape(3, 3)
    n = seeds * clean.bincount().double().unsqueeze(1)
    stderr = (labels.confusion * (1 - labels.confusion) / n).sqrt()
    assert ((counts / n - labels.confusion).abs() < 5 * stderr).all()
    nominal = symmetric_confusion(0.4, 3, include_true=not include_true)  # the other convention is told apart
    assert ((counts / n - nominal).abs() > 5 * stderr).any()


def test_corrected_loss_is_unbiased_exactly():
    """F (F^-1 l) = l: the expectation over noisy labels, computed rather than drawn."""
    confusion = symmetric(np.arange(40) % 4, 4, rate=0.3, seed=1, include_true=True).confusion
    losses = torch.tensor([0.3, 2.0, 0.1, 5.0], dtype=torch.float64)
    assert torch.allclose(confusion @ (inverse_confusion(confusion) @ losses), losses, rtol=1e-13)


def test_seed_and_global_generator():
    clean = torch.arange(50) % 5
    before = torch.get_rng_state()
    a, b, c = (symmetric(clean, 5, rate=0.4, seed=s).labels for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(clean, torch.arange(50) % 5)


@pytest.mark.parametrize(("y", "rate", "classes", "end"), [
    ([0, 1], -0.1, 2, "give a fraction between 0 and 1"),
    ([0, 1], 1.5, 2, "give a fraction between 0 and 1"),
    ([0, 1], float("nan"), 2, "give a fraction between 0 and 1"),
    ([0, 2], 0.1, 2, "between 0 and classes - 1, with at least two classes"),
    ([0, -1], 0.1, 2, "between 0 and classes - 1, with at least two classes"),
    ([0, 0], 0.1, 1, "between 0 and classes - 1, with at least two classes"),
    ([0.0, 1.0], 0.1, 2, "give one integer class for each example"),
    ([[0, 1]], 0.1, 2, "give one integer class for each example"),
    ([], 0.1, 2, "give one integer class for each example"),
])
def test_bad_input(y, rate, classes, end):
    with pytest.raises(InputError, match=ends(end)):
        symmetric(y, classes, rate=rate)
