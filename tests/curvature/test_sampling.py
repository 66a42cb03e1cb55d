"""Sampling with probability proportional to size: probabilities, nested samples, totals and their variance."""

import torch

from genmeasure.curvature.sampling import (
    Total,
    degrees_of_freedom,
    estimated_total,
    inclusion_probabilities,
    paired_mean,
    paired_sample,
)

SIZES = torch.tensor([5.0, 0.0, 1.0, 1.0, 0.5, 2.5], dtype=torch.float64)


def test_probabilities_add_up_and_large_units_are_certain():
    found = inclusion_probabilities(SIZES, 3)
    assert found.sum().item() == 3
    assert found[0] == 1
    assert found[1] == 0
    assert torch.allclose(found[2:], SIZES[2:] / 5 * 2)
    assert (inclusion_probabilities(SIZES, 4) >= found).all()  # samples are nested
    assert (inclusion_probabilities(SIZES, 9) == (SIZES > 0)).all()


def test_a_total_is_exact_when_ratios_are_equal_or_all_units_are_taken():
    probabilities, sampled = inclusion_probabilities(SIZES, 3), torch.tensor([0, 2, 3, 5])
    found = estimated_total(SIZES, probabilities, sampled, torch.full((4, 1), 7.0))
    assert torch.allclose(found.value, 7 * SIZES.sum())
    assert found.covariance.item() < 1e-20
    ratios = torch.arange(5.0)[:, None]
    whole = estimated_total(SIZES, (SIZES > 0).double(), SIZES.nonzero()[:, 0], ratios)
    assert torch.allclose(whole.value, SIZES[SIZES > 0] @ ratios.double())
    assert whole.covariance.item() == 0


def test_a_single_uncertain_unit_leaves_the_variance_unknown():
    found = estimated_total(SIZES, inclusion_probabilities(SIZES, 2), torch.tensor([0, 5]), torch.ones(2, 1))
    assert found.covariance.isnan().all()
    assert found.degrees_of_freedom(torch.ones(1, 1).double()).item() == 0


def test_paired_samples_take_units_as_often_as_their_size_says():
    generator = torch.Generator().manual_seed(0)
    counts = torch.stack([paired_sample(SIZES, 10, generator).bincount(minlength=6) for _ in range(400)]).double()
    expected = 20 * SIZES / SIZES.sum()
    assert (counts[:, 1] == 0).all()
    assert torch.allclose(counts.mean(0), expected, atol=0.2)
    assert ((counts - expected).abs() <= 3).all()


def test_the_mean_of_pairs_has_an_unbiased_variance():
    generator = torch.Generator().manual_seed(1)
    strata = torch.randn(50, 1, generator=generator).repeat_interleave(2, 0) * 3  # differences between do not count
    found = [paired_mean(strata + torch.randn(100, 1, generator=generator)) for _ in range(400)]
    means = torch.cat([f.value for f in found])
    assert abs(means.var().item() / 0.01 - 1) < 0.25
    assert abs(torch.stack([f.covariance for f in found]).mean().item() / 0.01 - 1) < 0.05


def test_degrees_of_freedom_fall_where_few_squares_carry_the_sum():
    normal = torch.randn(4000, 1, generator=torch.Generator().manual_seed(2)).square().double()
    few = normal.clone()
    few[:2] = 4000
    found = degrees_of_freedom(torch.cat([normal, few, torch.zeros_like(few)], 1)).tolist()
    assert 3000 < found[0] < 5000
    assert found[1] < 10
    assert found[2] == torch.inf


def test_degrees_of_freedom_of_a_sum_are_its_own():
    """A heavy tail in a column of little weight does not make the sum doubtful."""
    generator = torch.Generator().manual_seed(3)
    residuals = torch.randn(400, 2, generator=generator).double()
    residuals[:, 1] *= 1e-3
    residuals[0, 1] = 1.0
    found = Total(torch.zeros(2), residuals).degrees_of_freedom(torch.tensor([[0.0, 1.0], [1.0, 1.0]]).double())
    assert found[0] < 3 < 200 < found[1]
