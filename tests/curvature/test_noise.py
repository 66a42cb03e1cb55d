"""Noise stability: closed forms for every covariance, calibration, and weights that stay as they are."""

import copy

import numpy as np
import pytest
import small
import torch
from dense import TANH, assert_calibrated, make, noise_differences
from torch import nn

from genmeasure.curvature import noise
from genmeasure.curvature.noise import (
    Interpolation,
    Noise,
    Sample,
    Spreads,
    group_draws,
    grouped,
    noise_curve,
    one_sided_curve,
    survey,
)
from genmeasure.curvature.perturbation import Perturbed
from genmeasure.curvature.scaled_trace import scaled_traces
from genmeasure.data.batches import Batches
from genmeasure.engine import LocalEngine
from genmeasure.errors import InputError
from genmeasure.layers import find_layers
from genmeasure.losses import LOSSES, Loss
from genmeasure.risk import Risk
from genmeasure.subject import subject

SEEDS = 200
COVARIANCES = [Spreads(), Spreads("norm"), Spreads("weight"), Spreads(factors=(0.5, 2.0)), Spreads("norm", (1.0, 0.0))]


class Two(nn.Module):
    """x -> W x + V x: linear in both weights."""

    def __init__(self):
        super().__init__()
        self.w, self.v = nn.Linear(5, 2, bias=False), nn.Linear(5, 2, bias=False)

    def forward(self, x):
        return self.w(x) + self.v(x)


@pytest.fixture(scope="module")
def quadratic():
    """Half the square of a linear map: the Hessian of every row of W and V is the mean of xx'."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, x, y = Two().double(), torch.randn(48, 5).double(), torch.randn(48, 2).double()
    s = subject(net, net, Batches.from_arrays(x, y, batch_size=12), loss="squared", dtype="float64", device="cpu")
    return s, x.square().mean(0)


def trace(s, diagonal, spreads):
    """sum of spread^2 times second derivatives."""
    sizes = spreads.of(s.risk)
    return sum((torch.as_tensor(sizes[k]) ** 2 * torch.ones_like(w) * diagonal).sum().item()
               for k, w in s.risk.weights.items())


@pytest.mark.parametrize("spreads", COVARIANCES, ids=str)
@pytest.mark.parametrize("sigma", [0.01, 3.0])
def test_a_quadratic_has_its_parabola_for_every_covariance(quadratic, spreads, sigma):
    s, diagonal = quadratic
    truth = sigma**2 / 2 * trace(s, diagonal, spreads)
    found = noise_curve(s.risk, survey(s.risk), [sigma], spreads=spreads, rtol=0.02, max_passes=400, seed=1)
    assert found.stderr.item() < 0.025 * truth
    assert abs(found.value.item() - truth) < 4 * found.stderr.item()


@pytest.mark.parametrize("spreads", COVARIANCES, ids=str)
def test_random_signs_with_scales_have_the_same_trace(quadratic, spreads):
    s, diagonal = quadratic
    scales = {k: torch.as_tensor(v) * torch.ones_like(s.risk.weights[k]) for k, v in spreads.of(s.risk).items()}
    found = scaled_traces(s.risk, scales, rtol=0.01, max_passes=400, seed=0)
    assert abs(found.estimate().value - trace(s, diagonal, spreads)) < 4 * found.estimate().stderr
    assert found.estimate().stderr < 0.011 * trace(s, diagonal, spreads)


def test_noise_in_one_layer_leaves_the_others(quadratic):
    s, diagonal = quadratic
    found = noise_curve(s.risk, survey(s.risk), [1.0], layers=s.layers[:1], rtol=0.02, max_passes=400, seed=0)
    assert abs(found.value.item() - diagonal.sum().item()) < 4 * found.stderr.item()


def slope(outputs, targets):
    return 5 * outputs[:, 0]


def test_pairs_have_no_variance_where_the_loss_is_linear():
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)).double()
    net = nn.Linear(4, 1).double()
    s = subject(net, net, Batches.from_arrays(x, torch.zeros(30)), dtype="float64", device="cpu",
                loss=Loss("slope", slope, classification=False))
    pairs = noise_curve(s.risk, survey(s.risk), [0.1], rtol=0, max_passes=30, seed=0)
    single = one_sided_curve(s.risk, survey(s.risk), [0.1], rtol=0, max_passes=30, seed=0)
    assert pairs.values.abs().max().item() < 1e-13
    assert single.stderr.item() > 0.01
    assert abs(single.value.item()) < 4 * single.stderr.item()


@pytest.fixture(scope="module")
def classifier():
    """200 examples, most of them well fitted, so that few carry the curve."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        x = torch.randn(200, 4).double()
    y = net(x).argmax(1)
    with torch.no_grad():
        net[2].weight *= 20
        net[2].bias *= 20
    return subject(net, net, Batches.from_arrays(x, y, batch_size=32), dtype="float64", device="cpu")


def test_sampled_groups_have_the_mean_over_all_examples(classifier, monkeypatch):
    """The formula alone: with noise that is the same in every group, each example's difference is a fixed number."""
    monkeypatch.setattr(noise.Noise, "offset", lambda self, _, layer: torch.full_like(self.weights[layer.name], 0.3))
    risk, sample, sigmas = classifier.risk, survey(classifier.risk), [0.01, 0.03]
    model, spreads = Perturbed(risk, risk.layers), Spreads().of(risk)
    fixed = [Noise(risk.layers, spreads, risk.weights, 0)] * 2
    truth = sum(noise.moved_losses(risk, model, fixed, b, sigmas).sum(0) for b in classifier.train) / 200
    truth -= sample.losses.mean()
    drawn = group_draws(risk, sample, sigmas, range(400), layers=risk.layers, spreads=spreads, numbers=(0,),
                        model=model)
    stderr = drawn.std(0) / 20
    assert ((drawn.mean(0) - truth).abs() < 4 * stderr).all()
    plain = Sample(torch.full((200,), 1 / 200, dtype=torch.float64), sample.losses)
    even = group_draws(risk, plain, sigmas, range(400), layers=risk.layers, spreads=spreads, numbers=(0,), model=model)
    assert (drawn.std(0) < 0.7 * even.std(0)).all()


def test_draws_at_a_few_sigmas_tell_a_smooth_curve():
    sigmas = torch.tensor([0.01, 0.05, 0.02, 0.4, 0.1, 0.2], dtype=torch.float64)
    draws = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    smooth = sigmas**2 * (draws @ torch.stack([sigmas.log() ** i for i in range(3)]))
    way = Interpolation.through(sigmas.tolist(), 3)
    assert {0, 3} < set(way.nodes)  # both ends
    assert way.completed(smooth[:4], smooth[4:, way.nodes]).numpy() == pytest.approx(smooth.numpy(), rel=1e-9)
    rough = torch.randn(8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = way.completed(rough[:4], rough[4:, way.nodes])
    told = rough[:, way.nodes] @ way.weights
    assert found.mean(0).numpy() == pytest.approx((told.mean(0) + (rough - told)[:4].mean(0)).numpy())
    assert found.mean(0)[list(way.nodes)].numpy() == pytest.approx(rough.mean(0)[list(way.nodes)].numpy())


def test_intervals_of_interpolated_curves_cover():
    """The formula alone, on draws whose curves are no polynomials and whose variance few of them carry."""
    sigmas = torch.tensor([0.01 * 1.2**i for i in range(8)], dtype=torch.float64)
    size = sigmas.shape[0]

    def draws(generator, count):
        shape = torch.randn(count, 3, generator=generator, dtype=torch.float64)
        rough = 0.1 * torch.randn(count, size, generator=generator, dtype=torch.float64)
        mean = 1 + 40 * sigmas + torch.sin(200 * sigmas)
        return sigmas**2 * (mean * shape[:, :1].square() + (60 * sigmas) ** 2 * shape[:, 1:2].square() + rough)
    truth = sigmas**2 * (1 + 40 * sigmas + torch.sin(200 * sigmas) + (60 * sigmas) ** 2)
    z, used = [], []
    for seed in range(2 * SEEDS):
        generator = torch.Generator().manual_seed(seed)

        def drawn(start, stop, at, generator=generator):
            columns = [sigmas.tolist().index(s) for s in at]
            used.append(len(columns))
            return draws(generator, stop - start)[:, columns]
        found = noise.drawn_curve(drawn, sigmas.tolist(), 10**5, 0.08, 0.0)
        z.append(((found.value - truth) / found.stderr).tolist())
    assert min(used) < size
    assert_calibrated(z)


def test_what_interpolation_misses_is_drawn_until_it_is_known():
    """Few draws carry what is missed, and more at the nodes do not tell it: such a curve went on to the last draw."""
    sigmas, limit = (0.01, 0.02, 0.04), 20_000

    def curve(seed):
        generator = torch.Generator().manual_seed(seed)

        def drawn(start, stop, at):
            x = torch.randn(stop - start, 2, generator=generator, dtype=torch.float64)
            rough = torch.tensor([0, 1.0, 0], dtype=torch.float64) * 0.3 * x[:, 1:] ** 5 / 15
            values = torch.tensor(sigmas).square() * (1 + 0.7 * x[:, :1].pow(4) / 3 + rough)
            return values[:, [sigmas.index(s) for s in at]]
        return noise.drawn_curve(drawn, sigmas, limit, 0.1, 0.0)
    found = [curve(seed) for seed in range(60)]
    assert max(x.draws for x in found) < limit / 4
    assert all((x.stderr <= 0.1 * x.value).all() for x in found)


def test_a_quadratic_is_drawn_at_one_sigma_after_the_first_sample(quadratic):
    s, diagonal = quadratic
    sigmas = (0.01, 0.1, 1.0)
    before = s.risk.passes
    found = noise_curve(s.risk, survey(s.risk), sigmas, rtol=0.03, max_passes=4000, seed=0)
    truth = torch.tensor(sigmas).double().square() / 2 * trace(s, diagonal, Spreads())
    assert ((found.value - truth).abs() < 4 * found.stderr).all()
    assert (found.stderr <= 0.03 * found.value).all()
    size = noise.group_size(s.risk) / s.risk.batches.size
    assert s.risk.passes - before < 1.2 * size * (64 * 6 + (found.draws - 64) * 2) + 10


def test_probabilities_are_those_of_the_sample(classifier):
    sample = survey(classifier.risk)
    assert sample.probabilities.sum().item() == pytest.approx(1)
    assert sample.probabilities.min().item() > 0.33 / 200
    rows, weights = sample.draw(4000, 5, torch.Generator().manual_seed(0))
    often = torch.bincount(rows.flatten(), minlength=200) / 20000
    assert (often - sample.probabilities).abs().max().item() < 5 * (sample.probabilities.max().item() / 20000) ** 0.5
    assert weights == pytest.approx(1 / (5 * 200 * sample.probabilities[rows]))
    everything, equal = sample.draw(3, 200, torch.Generator())
    assert (everything == torch.arange(200)).all()
    assert equal.unique().tolist() == [1 / 200]


def test_groups_hold_the_examples_that_were_drawn():
    """Of unequal shapes, repeated, and out of order."""
    data = Batches([(torch.full((2, n), float(n)), torch.tensor([10 * n, 10 * n + 1])) for n in (3, 4, 3, 5)])
    net = nn.Linear(3, 2)
    risk = Risk(net, LOSSES["squared"], find_layers(net, next(iter(data))), data, LocalEngine())
    rows = torch.tensor([[7, 0, 0], [2, 1, 4]])
    found = {}
    for batch in grouped(risk, rows):
        for place, y in zip(batch.rows.tolist(), batch.targets.tolist(), strict=True):
            found[place] = (batch.index, y)
    labels = [30, 31, 40, 41, 30, 31, 50, 51]
    assert found == {i: (i // 3, labels[row]) for i, row in enumerate(rows.flatten().tolist())}


@torch.no_grad()
def integrated(s, sigmas, draws):
    """I(sigma) of `classifier` with all the data in every draw and the network written out: [sigmas] and its errors."""
    generator, model = torch.Generator().manual_seed(10**6), s.model
    (w, b), (v, c) = ((model[i].weight, model[i].bias) for i in (0, 2))
    x, y = (torch.cat(parts) for parts in zip(*((batch.inputs[0], batch.targets) for batch in s.train), strict=True))

    def losses(w, v):
        hidden = torch.tanh(torch.einsum("ni,dji->dnj", x, w) + b)
        logits = torch.einsum("dnj,dkj->dnk", hidden, v) + c
        return nn.functional.cross_entropy(logits.movedim(2, 1), y.expand(len(w), -1), reduction="none").mean(1)
    plain, found = losses(w[None], v[None]), []
    for _ in range(draws // 1000):
        a, e = (torch.randn(1000, *t.shape, generator=generator, dtype=torch.float64) for t in (w, v))
        found.append(torch.stack([(losses(w + t * a, v + t * e) + losses(w - t * a, v - t * e)) / 2 - plain
                                  for t in sigmas], 1))
    found = torch.cat(found)
    return found.mean(0), found.std(0) / len(found) ** 0.5


@pytest.mark.slow
def test_intervals_cover_and_estimates_have_no_bias(classifier):
    """The curve of a classifier with few examples that matter, against an integral that is known much better.

    The error of that integral is common to all seeds: it moves the mean of z by its size in standard errors.
    """
    risk, sigmas = classifier.risk, (0.01, 0.1, 0.3)
    sample = survey(risk)
    truth, error = integrated(classifier, sigmas, 100_000)
    found = [noise_curve(risk, sample, sigmas, rtol=0.1, max_passes=100, seed=seed) for seed in range(SEEDS)]
    values, errors = torch.stack([x.value for x in found]), torch.stack([x.stderr for x in found])
    assert (error < 0.04 * errors.median(0).values).all()
    off = values.mean(0) - truth
    assert (off.abs() < 3.3 * values.std(0) / SEEDS**0.5).all(), off / truth
    z = (values - truth) / errors
    assert_calibrated(z)
    # to the second order the mean of z is that of Student's t of skewed draws, and no bias of the estimate
    draws = torch.cat([(x.values - truth) / x.values.std(0) for x in found])
    skewed = -draws.pow(3).mean(0) / 2 * torch.tensor([x.draws**-0.5 for x in found]).mean()
    assert (skewed < -0.03).all()
    assert ((z.mean(0) - skewed).abs() < 2.6 / SEEDS**0.5).all()


@pytest.mark.slow
@pytest.mark.parametrize("one_sided", [False, True])
def test_intervals_of_a_quadratic_cover(quadratic, one_sided):
    s, diagonal = quadratic
    sigmas = (0.01, 1.0)
    truth = torch.tensor(sigmas).square() / 2 * trace(s, diagonal, Spreads())
    z, sample = [], survey(s.risk)
    for seed in range(2 * SEEDS):
        found = (one_sided_curve(s.risk, sample, sigmas, rtol=0, max_passes=64, seed=seed) if one_sided else
                 noise_curve(s.risk, sample, sigmas, rtol=0.1, max_passes=100, seed=seed))
        z.append(((found.value - truth) / found.stderr).tolist())
    assert_calibrated(z)


# weights stay as they are

class Attention(nn.Module):
    """Multi-head attention, whose projection is read without being called, and a head tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x + torch.tanh(self.inner(x)) + torch.nn.functional.linear(x, self.inner.weight))


def attention(dtype):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Attention().to(dtype).eval().requires_grad_(False)
        tokens = torch.randint(0, 7, (12, 5))
    data = Batches.from_arrays(tokens, tokens, batch_size=5)
    return Risk(net, LOSSES["next-token-cross-entropy"], find_layers(net, next(iter(data))), data, LocalEngine())


def bits(module):
    return {k: v.clone().flatten().view(torch.uint8) for k, v in module.state_dict().items()}


def identical(module, before):
    return all(torch.equal(v, before[k]) for k, v in bits(module).items())


def test_a_moved_model_is_the_model_with_moved_weights():
    """Also where a weight is shared, read by another module's forward, or never passed through its own module."""
    risk = attention(torch.float64)
    assert [x.name for x in risk.layers] == ["attention.in_proj", "attention.out_proj", "inner", "head"]
    generator = torch.Generator().manual_seed(0)
    offsets = {k: 0.1 * torch.randn(w.shape, generator=generator).double() for k, w in risk.weights.items()}
    batch = next(iter(risk.batches))
    # functional_call ties what the model ties only under the name that it is given
    other = copy.deepcopy(risk.model)
    with torch.no_grad():
        for layer in risk.layers:
            other.get_parameter(layer.parameter).add_(offsets[layer.name])
    with Perturbed(risk, risk.layers).moved({k: lambda w, k=k: w + offsets[k] for k in offsets}):
        found = risk.outputs({}, batch)
    assert found.numpy() == pytest.approx(other(*batch.inputs).numpy(), rel=1e-12)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("one_sided", [False, True])
def test_weights_are_bit_identical_after_an_error_at_any_batch(error, dtype, one_sided):
    risk = attention(dtype)
    before, parameters = bits(risk.model), dict(risk.model.named_parameters())
    calls, stop = 0, 0

    def counted(module, inputs):  # in the middle of the model, while layers are moved
        nonlocal calls
        calls += 1
        if calls == stop:
            raise error

    def run():
        if one_sided:
            return one_sided_curve(risk, sample, [0.01, 0.1], rtol=0, max_passes=3, seed=0)
        return noise_curve(risk, sample, [0.01, 0.1], rtol=0, max_passes=3, seed=0)
    sample = survey(risk)
    risk.model.inner.register_forward_pre_hook(counted)
    whole = run()
    total, hooks = calls, {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in
                           risk.model.named_modules()}
    assert total > 20
    for stop in range(1, total + 1, max(1, total // 23)):  # noqa: B007 - read by `counted`
        calls = 0
        with pytest.raises(error):
            run()
        assert identical(risk.model, before)
        assert dict(risk.model.named_parameters()).items() == parameters.items()
        assert {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in
                risk.model.named_modules()} == hooks
    calls, stop = 0, 0
    assert torch.equal(run().values, whole.values)


def test_noise_is_the_same_kept_or_drawn_again_by_one_thread_or_two(monkeypatch):
    s, drawn = make(TANH), []
    draw = noise.Noise._drawn
    monkeypatch.setattr(noise, "copies_at_once", lambda *_: 1)
    monkeypatch.setattr(noise.Noise, "_drawn", lambda self, place: drawn.append(place) or draw(self, place))

    def run():
        drawn.clear()
        return noise_curve(s.risk, survey(s.risk), [0.01, 0.1], rtol=0, max_passes=4, seed=0), len(drawn)
    kept, few = run()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    by_two, also_few = run()
    monkeypatch.setattr(noise, "KEPT", 0)
    by_memory, still_few = run()  # there is room for it
    monkeypatch.setattr(noise, "MEMORY", 0.0)
    again, many = run()
    for other in (by_two, by_memory, again):
        assert torch.equal(kept.values, other.values)
    assert few == also_few == still_few == kept.draws * len(s.risk.layers)
    assert many == 4 * few  # two sigmas, two signs


def test_rounding_is_not_drawn_to_the_last_pass():
    """Losses without noise come from other batches, so that noise without effect leaves their rounding."""
    start, end = small.pair("residual")
    risk = subject(end, start, small.batches(256, batch_size=64), device="cpu").risk
    nothing = Spreads(factors=(0.0,) * len(risk.layers))
    found = noise_curve(risk, survey(risk), [0.1], spreads=nothing, rtol=0.05, max_passes=50, seed=0)
    assert found.value.abs().item() < 1e-6
    assert found.draws == noise.FIRST_GROUPS


def test_unknown_covariances_and_wrong_numbers_of_factors_are_refused(quadratic):
    s, _ = quadratic
    with pytest.raises(InputError, match=r"did you mean 'isotropic'\?$"):
        Spreads("isotropi").of(s.risk)
    with pytest.raises(InputError, match="give one number that is not negative for each, in the order w, v$"):
        Spreads(factors=(1.0,)).of(s.risk)


def test_a_loss_that_overflows_names_sigma_and_example(classifier):
    with pytest.raises(InputError, match="or measure with --dtype float64$"):
        noise_curve(classifier.risk, survey(classifier.risk), [1e-2, 1e308], rtol=0.1, max_passes=2, seed=0)


def test_differences_are_those_of_the_losses(quadratic):
    s, _ = quadratic
    batch = next(iter(s.train))
    u = {k: torch.ones_like(w) for k, w in s.risk.weights.items()}
    up, down, plain = (s.risk.batch_loss(batch, {k: w + f * u[k] for k, w in s.risk.weights.items()}).item()
                       for f in (0.3, -0.3, 0.0))
    assert noise_differences(s, batch, u, 0.3) == pytest.approx((up + down) / 2 - plain, rel=1e-10)
    assert noise_differences(s, batch, u, 0.3, one_sided=True) == pytest.approx(up - plain, rel=1e-10)
    assert np.isfinite(up)
