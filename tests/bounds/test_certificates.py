"""Certificates: their inversions beside slow twins and golden numbers, and that they hold on known distributions."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import nn

import genmeasure as gm
from genmeasure.bounds import inversions, lotfi2022, pacbayes_kl
from genmeasure.bounds.moved import choice_nats, errors, moved
from genmeasure.data.batches import Batches
from genmeasure.errors import InputError


def test_golden_inversions():
    assert inversions.kl_inverse(0.1, 0.05) == pytest.approx(0.220078601107, abs=1e-12)
    assert inversions.pinsker(0.1, 0.05) == pytest.approx(0.258113883008, abs=1e-12)
    assert inversions.kl_inverse(0, 0.05) == pytest.approx(0.048770575499, abs=1e-12)
    budget = inversions.pac_bayes_budget(100, 10000, 0.025)
    assert budget == pytest.approx(0.0108987197, abs=1e-10)
    assert inversions.kl_inverse(0.1, budget) == pytest.approx(0.150006777661, abs=1e-12)
    assert inversions.pinsker(0.1, budget) == pytest.approx(0.173819779470, abs=1e-12)
    assert inversions.quadratic(0.1, budget) == pytest.approx(0.158841665223, abs=1e-12)
    weight = inversions.best_lambda(0.1, budget)
    assert weight == pytest.approx(0.3704422586, abs=1e-10)
    assert inversions.linear(0.1, budget, weight) == pytest.approx(0.158841665223, abs=1e-12)
    assert inversions.dziugaite_budget(100, 10000, 0.025, 10) == pytest.approx(0.0118013892, abs=1e-10)


def test_golden_compression():
    value, log_weight = inversions.best_catoni(0.05, 1000, 50000, 0.05)
    assert value == pytest.approx(0.106636542, abs=1e-9)
    assert log_weight == pytest.approx(10.6198, abs=1e-3)
    bits = inversions.prefix_bits(1000)
    assert bits == pytest.approx(1019.9315686, abs=1e-7)
    nats = bits * math.log(2)
    assert nats == pytest.approx(706.9626911, abs=1e-7)
    assert inversions.best_catoni(0.02, nats, 60000, 0.05)[0] == pytest.approx(0.0501229091, abs=1e-10)
    budget = inversions.pac_bayes_budget(nats, 60000, 0.05)
    assert inversions.kl_inverse(0.02, budget) == pytest.approx(0.0496713375, abs=1e-10)


def test_golden_language_model_terms():
    spread = inversions.smoothing_range(50257, 0.1)
    assert spread == pytest.approx(18.786965125, abs=1e-9)
    assert inversions.full_term(1000, 10000, 0.05, spread) == pytest.approx(4.2071807811, abs=1e-9)
    assert inversions.subsampled_term(1000, 10000, 1000, 0.05, spread) == pytest.approx(4.9507810744, abs=1e-9)


def test_golden_test_set_bounds():
    assert inversions.kl_inverse(0.05, math.log(20) / 1000) == pytest.approx(0.0686847466, abs=1e-10)
    assert inversions.binomial_upper(50, 1000, 0.05) == pytest.approx(0.0628634035, abs=1e-10)
    assert inversions.hoeffding(0.05, 1000, 0.05) == pytest.approx(0.0887022756, abs=1e-10)


@pytest.mark.parametrize(("q", "budget"), [*itertools.product((0.0, 1e-6, 0.02, 0.3, 0.9), (1e-4, 0.05, 1.0, 8.0))])
def test_the_inverse_of_kl_beside_a_bisection_and_the_order_of_the_forms(q, budget):
    low, high = q, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        right = math.log((1 - q) / (1 - middle)) if middle < 1 else 1e300
        kl = (q * math.log(q / middle) if q else 0) + (1 - q) * right
        low, high = (middle, high) if kl <= budget else (low, middle)
    found = inversions.kl_inverse(q, budget)
    assert found == pytest.approx(low, rel=1e-9, abs=1e-12)
    quadratic, classic = inversions.quadratic(q, budget), inversions.pinsker(q, budget)
    assert found <= quadratic * (1 + 1e-12)
    assert found <= classic * (1 + 1e-12)
    assert (quadratic <= classic) == (quadratic <= 0.25)
    grid = [inversions.linear(q, budget, w) for w in np.linspace(0.001, 1.999, 2000)]
    assert min(grid) == pytest.approx(quadratic, rel=1e-3)


def test_an_inverse_that_reaches_one():
    assert inversions.kl_inverse(1.0, 0.1) == inversions.kl_inverse(0.5, 1e4) == 1
    assert inversions.binomial_upper(7, 7, 0.1) == 1
    assert inversions.drawn_upper(1.0, 5, 0.2, 0.1) == 1


def test_the_binomial_tail_beside_its_definition():
    p = inversions.binomial_upper(12, 80, 0.1)
    assert binom.cdf(12, 80, p) == pytest.approx(0.1, rel=1e-9)


def test_catoni_beside_a_grid():
    grid = min(inversions.catoni(0.1, 300, 4000, 0.05, g) for g in np.linspace(1e-6, 13, 20001))
    assert inversions.best_catoni(0.1, 300, 4000, 0.05)[0] == pytest.approx(grid, rel=1e-6)


def test_budgets_fall_with_the_examples():
    """bounds.md T3."""
    values = [inversions.kl_inverse(0.1, inversions.pac_bayes_budget(50, n, 0.05)) for n in (100, 200, 400, 800)]
    assert values == sorted(values, reverse=True)


def test_the_code_is_a_probability():
    """All sequences of four symbols out of three add up to one, and the twin multiplies adaptive probabilities."""
    for concentration in (0.5, 1 / 3):
        total = sum(math.exp(-inversions.code_length(list(s), 3, concentration))
                    for s in itertools.product(range(3), repeat=4))
        assert total == pytest.approx(1)
        sequence, nats = [0, 2, 2, 1, 2, 0], 0.0
        for i, symbol in enumerate(sequence):
            nats -= math.log((sequence[:i].count(symbol) + concentration) / (i + 3 * concentration))
        assert inversions.code_length(sequence, 3, concentration) == pytest.approx(nats)


def test_numbers_are_coded_without_a_prefix_of_another():
    lengths = [lotfi2022.universal_bits(k) for k in range(1, 2000)]
    assert sum(2.0**-b for b in [lotfi2022.universal_bits(0), *lengths]) <= 1 + 1e-12


def test_drawn_means_are_covered():
    """Upper bounds on a mean of unequal expectations from one draw each, unequal weights included."""
    draw = np.random.default_rng(0)
    means, sizes = draw.uniform(0.05, 0.6, 40), np.r_[np.full(39, 8), 3]
    weights = sizes / sizes.sum()
    truth = float(weights @ means)
    drawn = [float(weights @ (draw.uniform(size=40) < means)) for _ in range(1000)]
    failures = sum(truth > inversions.drawn_upper(mean, 40, weights.max(), 0.1) for mean in drawn)
    assert failures <= 100


def classifier(seed=0, *, n=400, d=6, shift=0.6, tests=0, epochs=60):
    """A linear classifier trained from zero on two Gaussian classes at +-shift along every axis."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (n + tests,), generator=draw)
    x = torch.randn(n + tests, d, generator=draw) + shift * (2 * y[:, None] - 1)
    net = nn.Linear(d, 2)
    start = {k: torch.zeros_like(v) for k, v in net.state_dict().items()}
    net.load_state_dict(start)
    w = [p.requires_grad_() for p in net.parameters()]
    for _ in range(epochs):
        loss = nn.functional.cross_entropy(net(x[:n]), y[:n])
        for p, g in zip(w, torch.autograd.grad(loss, w), strict=True):
            p.data -= 0.3 * g
    test = Batches.from_arrays(x[n:], y[n:]) if tests else None
    return gm.subject(net, start, Batches.from_arrays(x[:n], y[:n], batch_size=50), test, device="cpu")


def terms(s, name, **parameters):
    return gm.measure(s, name, **parameters).set_index("term")["value"]


def true_error(weight, bias, shift=0.6):
    """Of the sign of the difference of the two outputs, for weights [..., 2, d] and biases [..., 2], exactly."""
    w, b = weight[..., 1, :] - weight[..., 0, :], bias[..., 1] - bias[..., 0]
    size, mean = w.norm(dim=-1).clamp(min=1e-30), shift * w.sum(-1)
    normal = torch.distributions.Normal(0.0, 1.0)
    return 0.5 * (normal.cdf(-(mean + b) / size) + normal.cdf(-(mean - b) / size))


def test_pac_bayes_beside_its_literal_twin():
    s = classifier()
    found, posterior = terms(s, "pacbayes-kl"), pacbayes_kl.found_posterior(
        s, "layerwise", examples=256, max_passes=200, seed=0)
    tensors, count = moved(s)
    assert (count, [m.path for m in tensors]) == (2, ["weight", "bias"])
    kl = sum(float(((m.end - m.start) ** 2).sum()) / (2 * sigma**2)
             for m, sigma in zip(tensors, posterior.sigmas, strict=True))
    assert found["kl"] == pytest.approx(kl)
    indices = [round(2 * math.log2(32 / sigma)) for sigma in posterior.sigmas]
    choice = choice_nats(2, indices, 64)
    assert found["choice-nats"] == pytest.approx(choice)
    upper = found["stochastic-error"] + found["monte-carlo"]
    budget = (kl + choice + math.log(2 * math.sqrt(400) / 0.04)) / 400
    assert found["total"] == pytest.approx(inversions.kl_inverse(upper, budget))
    draws = math.ceil(500 / 56) * 56  # eight batches of fifty in parts of at most eight
    expected = inversions.drawn_upper(found["stochastic-error"], draws, 8 / (400 * draws / 56), 0.01)
    assert upper == pytest.approx(expected)


def test_isotropic_noise_beside_its_literal_twin():
    s = classifier()
    found, posterior = terms(s, "pacbayes-kl", variant="isotropic"), pacbayes_kl.found_posterior(
        s, "isotropic", examples=256, max_passes=200, seed=0)
    (sigma,) = set(posterior.sigmas)
    step = round(-100 * math.log(sigma**2 / 0.1))
    which = choice_nats(2, [0, 0], 1)
    budget = (found["kl"] + which + math.log(math.pi**2 * 400 / (6 * 0.04)) + 2 * math.log(step)) / 399
    upper = found["stochastic-error"] + found["monte-carlo"]
    assert found["total"] == pytest.approx(inversions.kl_inverse(upper, budget))


def test_the_posteriors_error_is_that_of_its_draws():
    """Exact for a linear classifier: the mean over the posterior of the error on the training examples."""
    s = classifier()
    posterior = pacbayes_kl.found_posterior(s, "layerwise", examples=256, max_passes=200, seed=0)
    drawn = pacbayes_kl.drawn_error(s, posterior, draws=2000, draw_size=8, seed=0)
    x, y = torch.cat([b.inputs[0] for b in s.train]).double(), s.train.labels
    weight, bias = (m.end for m in moved(s)[0])
    sign = 2 * y - 1
    mean = sign * (x @ (weight[1] - weight[0]) + bias[1] - bias[0])
    spread = (2 * (posterior.sigmas[0] ** 2 * x.square().sum(1) + posterior.sigmas[1] ** 2)).sqrt()
    truth = torch.distributions.Normal(0.0, 1.0).cdf(-mean / spread).mean().item()
    assert drawn.error.n >= 2000
    assert abs(drawn.error.value - truth) < 4 * drawn.error.stderr
    assert drawn.error.stderr < 0.02


def test_compression_beside_its_literal_twin():
    s = classifier()
    found = terms(s, "lotfi2022")
    best, wrong, setting = lotfi2022.best_compressed(s, 256)
    nats = choice_nats(2, [0, 0], 1) + math.log(len(lotfi2022.STEPS) * len(lotfi2022.RANKS))
    for m in moved(s)[0]:
        move = m.move.numpy().ravel()
        assert setting["rank"] == 0 or m.move.ndim == 1 or min(m.move.shape) <= setting["rank"]
        width = float(np.float16(setting["step"] * np.sqrt((move**2).mean())))
        symbols = np.rint(move / width).astype(int)
        top = abs(symbols).max()
        counts = [int((symbols == k).sum()) for k in range(-top, top + 1)]
        nats += math.lgamma(len(move) + len(counts) / 2) - math.lgamma(len(counts) / 2) - sum(
            math.lgamma(c + 0.5) - math.lgamma(0.5) for c in counts)
        nats += (16 + 2 * int(math.log2(top + 1)) + 1) * math.log(2)
        np.testing.assert_allclose(best.state[m.path].numpy().ravel(), symbols * width, rtol=1e-6)
    assert found["bits"] * math.log(2) == pytest.approx(nats)
    x, y = torch.cat([b.inputs[0] for b in s.train]), s.train.labels
    assert wrong == (nn.functional.linear(x, best.state["weight"], best.state["bias"]).argmax(1) != y).double().mean()
    assert found["total"] == pytest.approx(inversions.kl_inverse(wrong, (nats + math.log(20)) / 400))
    weights = np.linspace(1e-3, math.log(400) + 5, 4001)
    grid = min(inversions.catoni(float(wrong), nats, 400, 0.05, g) for g in weights)
    assert terms(s, "lotfi2022", variant="catoni")["total"] == pytest.approx(grid, rel=1e-5)


def test_low_rank_factors():
    draw = torch.Generator().manual_seed(0)
    matrix = torch.randn(12, 2, generator=draw, dtype=torch.float64) @ torch.randn(2, 9, generator=draw,
                                                                                  dtype=torch.float64)
    factors = lotfi2022.best_factors(matrix)
    fine = lotfi2022.low_rank(factors, 2, 1e-3)
    assert (fine.value - matrix).norm() < 1e-2 * matrix.norm()
    assert lotfi2022.low_rank(factors, 2, 1.0).nats < fine.nats
    assert torch.linalg.matrix_rank(fine.value) == 2
    assert not lotfi2022.quantised(torch.zeros(3, dtype=torch.float64), 1.0).value.any()


def test_batch_norm_moves_by_the_logarithm_of_its_variance():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    start = {k: v.clone() for k, v in net.state_dict().items()}
    with torch.no_grad():
        net[1].running_var.mul_(3)
        net[3].weight.add_(0.1)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    s = gm.subject(net, start, [(x, torch.arange(20) % 2)], device="cpu")
    tensors, count = moved(s)
    assert count == 8
    assert {m.path for m in tensors} == {"1.running_var", "3.weight"}
    variance = next(m for m in tensors if m.path == "1.running_var")
    torch.testing.assert_close(variance.move, torch.full((4,), math.log((3 + 1e-5) / (1 + 1e-5)), dtype=torch.float64))
    torch.testing.assert_close(variance.value(variance.end, net[1].running_var), net[1].running_var)
    far = variance.value(variance.end - 40, net[1].running_var)
    assert (far + 1e-5 > 0).all()
    batch = next(iter(s.train))
    assert torch.equal(errors(s, {}, batch), (net(x).argmax(1) != batch.targets).double())


def test_an_unmoved_network_pays_nothing_for_noise():
    s = classifier(epochs=0)
    found = terms(s, "pacbayes-kl")
    assert found["kl"] == 0
    assert found["monte-carlo"] > 0


def test_few_examples_have_no_certificate_by_noise():
    for name in ("pacbayes-kl", "best-certificate"):
        (row,) = gm.measure(classifier(n=7), name).to_dict("records")
        assert row["term"] == "not-defined"
        assert "no proof for 7 examples, fewer than 8" in row["params"]


def test_hold_out_bounds_of_a_known_number_of_errors():
    s = classifier(tests=200)
    wrong = round(float(terms(s, "hold-out")["test-error"]) * 200)
    values = {v: terms(s, "hold-out", variant=v)["total"] for v in ("binomial", "chernoff", "hoeffding", "bernstein")}
    assert values["binomial"] == pytest.approx(inversions.binomial_upper(wrong, 200, 0.05))
    q = wrong / 200
    variance = np.var(np.r_[np.ones(wrong), np.zeros(200 - wrong)], ddof=1)
    assert values["bernstein"] == pytest.approx(
        q + math.sqrt(2 * variance * math.log(40) / 200) + 7 * math.log(40) / (3 * 199))
    assert values["binomial"] < values["chernoff"] < values["hoeffding"]


def test_the_best_of_several_pays_for_being_the_best():
    s = classifier()
    rows = gm.measure(s, "best-certificate", delta=0.06)
    values = [terms(s, n, delta=0.02, **p)["total"] for n, p in (
        ("pacbayes-kl", {}), ("pacbayes-kl", {"variant": "isotropic"}), ("lotfi2022", {}))]
    assert rows.set_index("term")["value"]["total"] == pytest.approx(min(values))


@pytest.mark.parametrize(("name", "parameters", "ending"), [
    ("pacbayes-kl", {"delta": 1.5}, "between 0 and 1$"), ("pacbayes-kl", {"draws": 0}, "at least one example$"),
    ("pacbayes-kl", {"variant": "layerwize"}, "did you mean 'layerwise'\\?$"),
    ("lotfi2022", {"variant": "k"}, "did you mean 'kl'\\?$"), ("hold-out", {"variant": "binom"}, "'binomial'\\?$"),
    ("hold-out", {}, "pass them with --test$")])
def test_bad_input(name, parameters, ending):
    with pytest.raises(InputError, match=ending):
        gm.measure(classifier(n=40), name, **parameters)


def risk_of(s, name, variant):
    """The true error of the classifier that a certificate speaks of, for noise by 400 draws."""
    if name == "hold-out":
        return true_error(s.state["weight"], s.state["bias"]).item()
    if name == "lotfi2022":
        state = lotfi2022.best_compressed(s, 256)[0].state
        return true_error(state["weight"], state["bias"]).item()
    posterior = pacbayes_kl.found_posterior(s, variant, examples=256, max_passes=4, seed=0)
    draw = torch.Generator().manual_seed(1)
    tensors, _ = moved(s)
    drawn = {m.path: m.end + sigma * torch.randn(400, *m.end.shape, generator=draw, dtype=torch.float64)
             for m, sigma in zip(tensors, posterior.sigmas, strict=True)}
    return true_error(drawn["weight"], drawn["bias"]).mean().item()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant", "parameters"), [
    ("pacbayes-kl", "isotropic", {"draws": 100}), ("pacbayes-kl", "layerwise", {"draws": 100, "trace_max_passes": 4}),
    ("lotfi2022", "kl", {}), ("hold-out", "binomial", {})])
def test_certificates_hold_in_simulation(name, variant, parameters):
    """At delta = 0.1 the true error exceeds the bound in at most 10 % of 300 samples."""
    failures = 0
    for seed in range(300):
        s = classifier(seed, n=120, tests=60, epochs=20)
        failures += risk_of(s, name, variant) > terms(s, name, variant=variant, delta=0.1, **parameters)["total"]
    assert failures <= 30


def test_certificates_are_tighter_than_norm_bounds_by_orders_of_magnitude():
    s = classifier(n=1000)
    certificates = [terms(s, n)["total"] for n in ("pacbayes-kl", "lotfi2022", "best-certificate")]
    assert max(certificates) < 0.5
    assert terms(s, "neyshabur2018")["total"] > 1
    norms = [terms(s, n, variant=v)["total"] for n, v in (
        ("gouk2021", "mars"), ("gouk2021", "frobenius"), ("pitas2017", "theorem"))]
    assert min(norms) > 50 * max(certificates)
