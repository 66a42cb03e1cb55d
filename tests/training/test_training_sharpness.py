"""The sharpness-aware family in closed form on quadratics."""

import pytest
import torch
from quadratic import Quadratic
from torch import nn

from genmeasure.errors import InputError
from genmeasure.training.context import Context
from genmeasure.training.loop import Settings
from genmeasure.training.probes.adaptive_uphill import AdaptiveUphill, adaptive_ascent
from genmeasure.training.probes.both_ways import BothWays
from genmeasure.training.probes.curvature_differences import CurvatureDifferences
from genmeasure.training.probes.gradient_difference import GradientDifference
from genmeasure.training.probes.log_curvature import LogCurvature
from genmeasure.training.probes.posterior_uphill import PosteriorUphill
from genmeasure.training.probes.random_uphill import RandomUphill
from genmeasure.training.probes.unnormalized_uphill import UnnormalizedUphill
from genmeasure.training.probes.uphill import ascent


def run(probe, shape=None, seed=0):
    """The model after one call, its weights and gradient there, both flat."""
    model = Quadratic(shape=shape)
    w = model.weight.detach().flatten().clone()
    value = probe(model, model, torch.Generator().manual_seed(seed))
    assert torch.equal(model.weight.flatten(), w)
    assert model.unused.grad is None
    return model, w, model.gradient(w), value


def test_usam_multiplies_the_gradient_by_one_plus_rho_times_the_hessian():
    model, w, g, value = run(UnnormalizedUphill(0.3))
    torch.testing.assert_close(model.weight.grad, g + 0.3 * model.matrix @ g)
    torch.testing.assert_close(value, model.value(w))


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_asam_moves_in_proportion_to_the_square_of_the_weights(eta):
    model, w, g, value = run(AdaptiveUphill(0.3, eta))
    t = w.abs() + eta
    torch.testing.assert_close(model.weight.grad, g + 0.3 * model.matrix @ (t * t * g) / (t * g).norm())
    torch.testing.assert_close(value, model.value(w))


def test_asam_does_not_depend_on_the_scale_of_a_layer():
    """e/w is the same when one tensor is multiplied by c and the gradient with respect to it divided by c."""
    g = torch.Generator().manual_seed(0)
    weights, gradients = ([torch.randn(4, generator=g) for _ in range(2)] for _ in range(2))
    one = adaptive_ascent(weights, gradients, 0.3)
    other = adaptive_ascent([8 * weights[0], weights[1]], [gradients[0] / 8, gradients[1]], 0.3)
    torch.testing.assert_close([8 * one[0], one[1]], other)
    assert all(not torch.equal(a, b) for a, b in zip(one, ascent(gradients, 0.3), strict=True))


def test_random_sam_looks_uphill_from_the_moved_weights():
    model, w, _, value = run(RandomUphill(0.3, 0.5))
    moved, uphill = model.seen
    draw = torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(moved, w + 0.5 * draw)
    h = model.gradient(moved)
    torch.testing.assert_close(uphill, w + 0.3 * h / h.norm())
    torch.testing.assert_close(model.weight.grad, model.gradient(uphill))
    torch.testing.assert_close(value, model.value(moved))


def test_second_differences_of_a_quadratic_have_no_gradient():
    """Only the first difference is left: g + (1 + 2 beta) A e."""
    for gamma in (0.0, 5.0):
        model, w, g, value = run(CurvatureDifferences(0.3, gamma, 0.2))
        torch.testing.assert_close(model.weight.grad, g + 1.4 * 0.3 * model.matrix @ g / g.norm())
        torch.testing.assert_close(value, model.value(w))


def test_logarithm_of_the_first_difference_of_a_quadratic():
    """d(beta log N) = beta A e/(rho ‖g‖), and the curvature's logarithm has no gradient."""
    for alpha in (0.0, 5.0):
        model, w, g, value = run(LogCurvature(0.3, alpha, 0.2))
        e = 0.3 * g / g.norm()
        torch.testing.assert_close(model.weight.grad, g + (1 + 0.2 / (0.3 * g.norm())) * model.matrix @ e)
        torch.testing.assert_close(value, model.value(w))


@pytest.mark.parametrize(("here", "up", "down", "expected"), [
    (1.0, 1.5, 0.7, (0.5 / 0.2, 0.2 / 0.8)), (1.0, 1.2, 0.7, (0.0, 0.2 / 0.5)), (1.0, 0.8, 1.3, (0.5 / 0.1, 0.0)),
    (1.0, 1.0, 1.0 + 1e-15, (0.0, 0.0))])
def test_a_difference_without_a_logarithm_is_left_out(here, up, down, expected):
    here, up, down = (torch.tensor(x, dtype=torch.float64) for x in (here, up, down))
    found = LogCurvature(0.3, 0.5, 0.2).factors(BothWays(here, up, down, {}))
    assert [x.item() for x in found] == pytest.approx(expected)


@pytest.mark.parametrize("adaptive", [True, False])
def test_hero_in_closed_form(adaptive):
    """A (w + e) + b + 2 lam/size A A e, for a weight tensor of two dimensions."""
    model, w, g, value = run(GradientDifference(0.3, 2.0, adaptive), shape=(5, 1))
    e = 0.3 * (w * w * g / (w * g).norm() if adaptive else g / g.norm())
    expected = g + model.matrix @ e + 2 * 2.0 / 5 * model.matrix @ model.matrix @ e
    torch.testing.assert_close(model.weight.grad.flatten(), expected)
    torch.testing.assert_close(value, model.value(w))


def test_hero_leaves_tensors_of_one_dimension_out_of_its_penalty():
    model, _, g, _ = run(GradientDifference(0.3, 2.0, adaptive=False))
    torch.testing.assert_close(model.weight.grad, g + 0.3 * model.matrix @ g / g.norm())


def test_hero_runs_through_attention_whose_fused_kernel_has_no_second_derivative():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    GradientDifference(0.1, 1.0)(layer, lambda: layer(x).pow(3).mean())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def posterior(**changes):
    recipe = PosteriorUphill(**{"rho": 0.3, "examples": 4, **changes})
    return recipe.prepare(Context.of(nn.Linear(2, 2)))


def test_first_step_of_bayesian_sam():
    probe = posterior(beta1=0.8, beta2=0.9, delta=0.5, damping=0.1, scale=2.0)
    model, w, _, value = run(probe)
    drawn, uphill = model.seen
    draw = torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(drawn, w + draw / 8 ** 0.5)
    g = model.gradient(drawn)
    torch.testing.assert_close(uphill, w + 0.15 * g)
    s = 0.9 * 2 + 0.1 * (2 ** 0.5 * g.abs() + 0.6)
    torch.testing.assert_close(model.weight.grad, 0.2 * (model.gradient(uphill) + 0.5 * w) / s)
    torch.testing.assert_close(value, model.value(drawn))


def test_bayesian_sam_resumes_bit_for_bit():
    def run(probe, steps):
        for _ in range(steps):
            probe(model, model, generator)
        return model.weight.grad.clone()
    model, generator = Quadratic(), torch.Generator().manual_seed(0)
    probe = posterior()
    run(probe, 3)
    kept, position = probe.state(), generator.get_state()
    expected = run(probe, 2)
    other = posterior()
    other.load(kept)
    generator.set_state(position)
    assert torch.equal(run(other, 2), expected)
    assert not torch.equal(run(posterior(), 2), expected)


@pytest.mark.parametrize("changes", [{"optimizer": "adam"}, {"momentum": 0.9}, {"weight_decay": 0.1}])
def test_bayesian_sam_refuses_what_would_change_its_update(changes):
    settings = Settings(**{"optimizer": "sgd", "momentum": 0.0, **changes})
    with pytest.raises(InputError) as caught:
        PosteriorUphill(examples=4).prepare(Context.of(nn.Linear(2, 2), settings=settings))
    assert str(caught.value).endswith("use optimizer='sgd', momentum=0, weight_decay=0")


def test_bayesian_sam_needs_the_number_of_examples():
    with pytest.raises(InputError) as caught:
        PosteriorUphill().prepare(Context.of(nn.Linear(2, 2)))
    assert str(caught.value).endswith("pass examples=…")
