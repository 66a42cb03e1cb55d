"""Every probe against a literal transcription of its paper's update, over several steps of a small smooth network.

The slow sides work on one flat vector of weights and take derivatives of the formulas by torch.func.
"""

import copy
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad

from genmeasure.training.context import Context
from genmeasure.training.probes.adaptive_uphill import AdaptiveUphill
from genmeasure.training.probes.curvature_differences import CurvatureDifferences
from genmeasure.training.probes.gradient_difference import GradientDifference
from genmeasure.training.probes.log_curvature import LogCurvature
from genmeasure.training.probes.noise import Noise
from genmeasure.training.probes.posterior_uphill import PosteriorUphill
from genmeasure.training.probes.random_uphill import RandomUphill
from genmeasure.training.probes.unnormalized_uphill import UnnormalizedUphill
from genmeasure.training.probes.uphill import Uphill
from genmeasure.training.probes.value_differences import ValueDifferences

RATE, STEPS, EXAMPLES = 0.1, 5, 12


class Problem:
    """A network of two layers, and its loss as a function of the flat weights."""

    def __init__(self):
        g = torch.Generator().manual_seed(0)
        with torch.random.fork_rng([]):
            torch.manual_seed(1)
            self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
        self.x = torch.randn(EXAMPLES, 3, generator=g, dtype=torch.float64)
        self.y = torch.randint(3, (EXAMPLES,), generator=g)
        self.shapes = {name: p.shape for name, p in self.net.named_parameters()}

    def loss(self, w):
        return nn.functional.cross_entropy(functional_call(self.net, self.parts(w), (self.x,)), self.y)

    def parts(self, w):
        pieces = w.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), pieces, strict=True)}

    def start(self):
        return torch.cat([p.detach().flatten() for p in self.net.parameters()])

    def noise(self, generator):
        return torch.cat([torch.randn(shape, generator=generator, dtype=torch.float64).flatten()
                          for shape in self.shapes.values()])


@pytest.fixture(scope="module")
def problem():
    return Problem()


def fast(problem, probe):
    """Weights after every step of plain SGD."""
    net, g = copy.deepcopy(problem.net), torch.Generator().manual_seed(7)
    optimizer, path = torch.optim.SGD(net.parameters(), lr=RATE), []
    for _ in range(STEPS):
        probe(net, lambda: nn.functional.cross_entropy(net(problem.x), problem.y), g)
        optimizer.step()
        path.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    return torch.stack(path)


def slow(problem, direction):
    """The same with a direction that is a function of the weights and a generator."""
    w, g, path = problem.start(), torch.Generator().manual_seed(7), []
    for _ in range(STEPS):
        w = w - RATE * direction(w, g)
        path.append(w)
    return torch.stack(path)


def compare(problem, probe, direction):
    found, expected = fast(problem, probe), slow(problem, direction)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    plain = slow(problem, lambda w, g: grad(problem.loss)(w))
    assert (found - plain).abs().max() > 1e-5  # it is not the plain gradient


def test_sam(problem):
    """eps = rho g/‖g‖; w <- w - eta grad L(w + eps). Foret et al. 2021, Algorithm 1."""
    def direction(w, _):
        g = grad(problem.loss)(w)
        return grad(problem.loss)(w + 0.3 * g / g.norm())
    compare(problem, Uphill(0.3), direction)


@pytest.mark.parametrize("eta", [0.0, 0.01])
def test_asam(problem, eta):
    """eps = rho T² g/‖T g‖, T = |w| + eta. Kwon et al. 2021, Algorithm 1."""
    def direction(w, _):
        g, t = grad(problem.loss)(w), w.abs() + eta
        return grad(problem.loss)(w + 0.5 * t ** 2 * g / (t * g).norm())
    compare(problem, AdaptiveUphill(0.5, eta), direction)


def test_usam(problem):
    """eps = rho g. Andriushchenko, Flammarion 2022."""
    compare(problem, UnnormalizedUphill(0.4), lambda w, _: grad(problem.loss)(w + 0.4 * grad(problem.loss)(w)))


def test_random_sam(problem):
    """h = grad L(w + U); w <- w - eta grad L(w + rho h/‖h‖)."""
    def direction(w, generator):
        h = grad(problem.loss)(w + 0.2 * problem.noise(generator))
        return grad(problem.loss)(w + 0.3 * h / h.norm())
    compare(problem, RandomUphill(0.3, 0.2), direction)


def test_cr_sam_of_the_public_code(problem):
    """grad of L(w+e) + gamma [L(w+e) + L(w-e) - 2 L(w)] + beta [L(w+e) - L(w-e)], e held fixed."""
    def direction(w, _):
        g = grad(problem.loss)(w)
        e = 0.3 * g / g.norm()
        return grad(lambda v: problem.loss(v + e)
                    + 0.5 * (problem.loss(v + e) + problem.loss(v - e) - 2 * problem.loss(v))
                    + 0.2 * (problem.loss(v + e) - problem.loss(v - e)))(w)
    compare(problem, CurvatureDifferences(0.3, 0.5, 0.2), direction)


def test_cr_sam_of_the_paper(problem):
    """grad of L(w+e) + alpha log T + beta log N, T and N differences of L along e, which is held fixed."""
    rho = 0.3

    def direction(w, _):
        g = grad(problem.loss)(w)
        e = rho * g / g.norm()
        return grad(lambda v: problem.loss(v + e)
                    + 0.04 * torch.log((problem.loss(v + e) + problem.loss(v - e) - 2 * problem.loss(v)) / rho ** 2)
                    + 0.02 * torch.log((problem.loss(v + e) - problem.loss(v - e)) / (2 * rho)))(w)
    compare(problem, LogCurvature(rho, 0.04, 0.02), direction)


@pytest.mark.parametrize("adaptive", [True, False])
def test_hero(problem, adaptive):
    """grad of L(w+e) + lam sum over weight matrices of mean((grad L(w+e) - g)²), e and g held fixed."""
    def direction(w, _):
        g = grad(problem.loss)(w)
        e = 0.5 * w ** 2 * g / (w.abs() * g).norm() if adaptive else 0.5 * g / g.norm()

        def objective(v):
            now, then = problem.parts(grad(problem.loss)(v + e)), problem.parts(g)
            return problem.loss(v + e) + 3.0 * sum(((now[k] - then[k]) ** 2).mean() for k in now if "weight" in k)
        return grad(objective)(w)
    compare(problem, GradientDifference(0.5, 3.0, adaptive), direction)


@pytest.mark.parametrize("lam", [0.0, 0.4])
@pytest.mark.parametrize("two_point", [True, False])
def test_noise_stability_optimisation(problem, two_point, lam):
    """lam grad f(W) + (1 - lam) mean over U (and -U) of grad f(W + U). Zhang, Li, Ju 2024, Algorithm 1 at lam = 0."""
    def direction(w, generator):
        total = torch.zeros_like(w)
        for _ in range(3):
            u = 0.2 * problem.noise(generator)
            total += grad(problem.loss)(w + u)
            if two_point:
                total += grad(problem.loss)(w - u)
        return lam * grad(problem.loss)(w) + (1 - lam) * total / (6 if two_point else 3)
    compare(problem, Noise(0.2, 3, two_point, lam), direction)


def test_zeroth_order(problem):
    """mean of (f(w + sigma u) - f(w - sigma u))/(2 sigma) u."""
    def direction(w, generator):
        total = torch.zeros_like(w)
        for _ in range(4):
            u = problem.noise(generator)
            total += (problem.loss(w + 0.1 * u) - problem.loss(w - 0.1 * u)) / 0.2 * u
        return total / 4
    compare(problem, ValueDifferences(0.1, 4), direction)


def test_bayesian_sam(problem):
    """Möllenhoff, Khan 2023, Algorithm 1: posterior N(w, 1/(N s)), momentum m, scale s, step m/s."""
    rho, beta1, beta2, delta, gamma, n = 0.1, 0.8, 0.95, 0.01, 0.1, EXAMPLES
    m, s = torch.zeros_like(problem.start()), 0.7 * torch.ones_like(problem.start())

    def direction(w, generator):
        nonlocal m, s
        g = grad(problem.loss)(w + torch.sqrt(1 / (n * s)) * problem.noise(generator))
        h = grad(problem.loss)(w + rho * g / s)
        m = beta1 * m + (1 - beta1) * (h + delta * w)
        s = beta2 * s + (1 - beta2) * (torch.sqrt(s) * g.abs() + delta + gamma)
        return m / s
    recipe = PosteriorUphill(rho, beta1, beta2, delta, gamma, scale=0.7, examples=n)
    probe = recipe.prepare(Context.of(problem.net))
    compare(problem, probe, direction)
    torch.testing.assert_close(torch.cat([t.flatten() for t in probe.scale.values()]), s)
    assert not math.isclose(s.min().item(), s.max().item())
