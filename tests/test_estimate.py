import math

import pytest
import torch

from genmeasure.estimate import Estimate, StratifiedMean, propagate, until_precise


def test_from_draws_is_mean_and_standard_error():
    e = Estimate.from_draws([1.0, 2.0, 4.0])
    assert (e.value, e.n) == (pytest.approx(7 / 3), 3)
    assert e.stderr == pytest.approx(math.sqrt(7 / 3 / 3))


def test_a_single_draw_has_an_unknown_error():
    assert math.isnan(Estimate.from_draws([3.0]).stderr)


def test_no_draws_are_refused():
    with pytest.raises(ValueError, match="at least one is needed for an estimate$"):
        Estimate.from_draws([])


def test_propagation_of_a_product_matches_the_closed_form():
    value = torch.tensor([2.0, 5.0], dtype=torch.float64)
    covariance = torch.tensor([[0.04, 0.01], [0.01, 0.09]], dtype=torch.float64)
    e = propagate(lambda x: x[0] * x[1], value, covariance, 7)
    assert e.value == 10
    assert e.stderr == pytest.approx(math.sqrt(25 * 0.04 + 4 * 0.09 + 2 * 10 * 0.01))
    assert e.n == 7


def test_stratified_mean_equals_a_literal_twin():
    draws = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = StratifiedMean(examples=10)
    for sums in draws:
        mean.add(sums)
    assert torch.allclose(mean.value, draws.mean(0).sum(0) / 10)
    twin = sum(torch.cov(draws[:, b].T) for b in range(3)) / 5 / 100
    assert torch.allclose(mean.covariance, twin)
    total = mean.estimate()
    assert total.value == pytest.approx(mean.value.sum().item())
    assert total.stderr == pytest.approx(math.sqrt(twin.sum().item()))


def test_layers_that_share_draws_are_added_with_their_correlation():
    mean = StratifiedMean(examples=1)
    for x in torch.randn(6, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64):
        mean.add(torch.cat([x, -x])[None])
    assert mean.estimate().stderr == pytest.approx(0, abs=1e-12)
    assert mean.estimates()[0].stderr > 0.1


def test_stratified_standard_errors_are_calibrated():
    z = []
    for seed in range(400):
        generator = torch.Generator().manual_seed(seed)
        mean = until_precise(lambda _, g=generator: torch.randn(8, 1, generator=g) + 1.0, 8, rtol=0.1,
                             numbers=range(50))
        z.append((mean.value.item() - 1) / mean.stderr.item())
    z = torch.tensor(z)
    assert abs(z.mean()) < 0.25
    assert 0.85 < z.std() < 1.15
    assert 0.90 < (z.abs() < 1.96).float().mean() < 0.98


def test_drawing_stops_at_the_wanted_error_and_not_before():
    def passes(rtol):
        generator = torch.Generator().manual_seed(0)
        return until_precise(lambda _: 10 + torch.randn(32, 1, generator=generator), 32, rtol=rtol, numbers=range(500))
    loose, tight = passes(0.01), passes(0.002)
    assert loose.stderr.item() <= 0.01 * loose.value.item()
    assert tight.stderr.item() <= 0.002 * tight.value.item()
    assert tight.passes > loose.passes


def test_drawing_ends_with_the_passes_given():
    generator = torch.Generator().manual_seed(0)
    mean = until_precise(lambda _: torch.randn(1, 1, generator=generator), 1, rtol=1e-9, numbers=range(5))
    assert mean.passes == 5
