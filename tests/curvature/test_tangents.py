"""Second derivatives of all layers from first-order tangents, against double backward for each layer."""

import pytest
import torch
from torch import nn

import genmeasure as gm
from genmeasure.curvature import tangents as module
from genmeasure.curvature.tangents import Place, find_tangents, second_derivatives
from genmeasure.curvature.taps import Probe, diagonal_second_derivatives, find_taps


class Encoder(nn.Module):
    """Attention with the tokens in front of the examples, as `nn.MultiheadAttention` likes them."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, "gelu", norm_first=True)
        self.embed, self.encoder = nn.Linear(4, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x).transpose(0, 1))[0])


class Convolutions(nn.Module):
    """Steps in place, a weight that is used twice, operations of which only torch knows the derivatives."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, 2, groups=2)
        self.group, self.twice, self.head = nn.GroupNorm(2, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = nn.functional.silu(self.norm(self.first(x)), inplace=True)
        x = self.group(nn.functional.max_pool2d(torch.tanh(self.second(x)), 2)).flatten(1)[:, :4]
        x = self.twice(torch.sigmoid(self.twice(x)))
        y, x = x.roll(1, 1) * x, x + 1
        x += y
        q, k = x.chunk(2, 1)
        x = torch.cat([q * k, k / (1 + q.square().sum(1, keepdim=True)), x[:, ::2].exp()], 1)
        return self.head(torch.where(x > 0, x, 0.5 * x)[:, [0, 2, 3, 5]])


class Quiet(Convolutions):
    """Goes on with what was changed in place under another name."""

    def forward(self, x):
        x = self.first(x).flatten(1)[:, :4] + 1
        y = x
        x += self.twice(torch.tanh(x))
        return self.head(torch.tanh(y))


class Sorted(Convolutions):
    """Several outputs of an operation that is not affine."""

    def forward(self, x):
        return self.head(torch.linalg.qr(torch.tanh(self.first(x))[:, :2, :2, :2]).Q.flatten(1)[:, :4])


def make(model, examples=5, dtype="float64", last=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, start = model(), model()
        for module_ in (net, start):
            for norm in (m for m in module_.modules() if isinstance(m, nn.BatchNorm2d)):
                norm.running_mean.normal_()
        x = torch.randn(examples, 6, 4) if issubclass(model, Encoder) else torch.randn(examples, 3, 11, 11)
        y = torch.randint(0, 3, (examples,))
        x[-1] = x[-1] if last is None else last
    return gm.subject(net, start, [(x[:3], y[:3]), (x[3:], y[3:])], dtype=dtype, device="cpu")


def both(s, function=None):
    taps, risk = find_taps(s.risk), s.risk
    probes = {x.name: Probe(s.displacement(x)) for x in s.layers}
    for batch in risk.batches:
        yield (second_derivatives(risk, taps, batch, probes, function or risk.losses_of),
               diagonal_second_derivatives(risk, taps, batch, probes, function or risk.losses_of))


@pytest.mark.parametrize("model", [Encoder, Convolutions])
def test_equal_to_double_backward(model):
    s = make(model)
    assert find_tangents(s.risk, find_taps(s.risk)) is not None
    for ours, twin in both(s):
        for a, b in zip(ours, twin, strict=True):
            assert ((a - b).abs() <= 1e-11 * b.abs().max(0).values).all()
            assert (b != 0).all()


def test_of_any_function_of_the_outputs():
    def function(outputs, batch):
        return (outputs[:, 0] * outputs[:, 1]).exp() + batch.targets * outputs[:, 2]
    for ours, twin in both(make(Encoder), function):
        assert torch.allclose(torch.stack(ours), torch.stack(twin), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("model", [Quiet, Sorted])
def test_what_is_not_followed_goes_backward_twice(model):
    s = make(model)
    assert find_tangents(s.risk, find_taps(s.risk)) is None
    for ours, twin in both(s):
        assert all(torch.equal(a, b) for a, b in zip(ours, twin, strict=True))
    frame = gm.measure(s, "hessian-distance", steps=1)
    assert '"second-derivatives": "double backward"' in frame["params"].iloc[0]


class Masked(Encoder):
    """Takes another way on a batch with a large number in it, as transformers do on one with padding."""

    def forward(self, x):
        x = self.embed(x)
        return self.head(torch.tanh(x if x.detach().max() < 50 else torch.sigmoid(x) * x).mean(1))


def test_another_way_on_other_examples_is_followed_too():
    s = make(Masked, last=1e4)
    found = find_tangents(s.risk, find_taps(s.risk))
    (_, plain), (ours, twin) = both(s)
    assert (plain[1] != 0).any()
    assert len(found.known) == 2
    assert None not in found.known.values()
    for a, b in zip(ours, twin, strict=True):
        assert not torch.equal(a, b)
        assert ((a - b).abs() <= 1e-11 * b.abs().max(0).values).all()


class Counted(Encoder):
    """Takes another way to the same numbers on a batch of two, which three of its examples do not show."""

    def forward(self, x):
        hidden = torch.tanh(self.embed(x))
        return self.head((hidden * 1 if len(x) == 2 else hidden).mean(1))


def test_a_way_that_three_examples_do_not_show_goes_backward_twice():
    s = make(Counted)
    found = find_tangents(s.risk, find_taps(s.risk))
    _, (ours, twin) = both(s)
    assert list(found.known.values()).count(None) == 1
    assert all(torch.equal(a, b) for a, b in zip(ours, twin, strict=True))


def test_the_reading_states_how():
    s = make(Encoder)
    assert '"second-derivatives": "tangents"' in gm.measure(s, "hessian-distance", steps=1)["params"].iloc[0]


def test_fewer_passes_than_double_backward():
    s = make(Encoder)
    taps, risk = find_taps(s.risk), s.risk
    find_tangents(risk, taps)
    costs = []
    for way in (second_derivatives, diagonal_second_derivatives):
        before = risk.passes
        way(risk, taps, next(iter(risk.batches)), {x.name: Probe(s.displacement(x)) for x in s.layers}, risk.losses_of)
        costs.append(risk.passes - before)
    assert 2 * costs[0] < costs[1]


def test_examples_are_found_where_they_are():
    x = torch.arange(24.0)
    assert Place(1).by_example(x.reshape(1, 2, 3, 4), 3).shape == (1, 2, 3, 4)
    heads_inside, heads_outside = Place(0), Place(0, False)
    assert heads_inside.by_example(x.reshape(1, 6, 4), 3)[0, 0, 1].tolist() == list(range(8, 16))
    assert heads_outside.by_example(x.reshape(1, 6, 4), 3)[0, :, 1].flatten().tolist() == [4, 5, 6, 7, 16, 17, 18, 19]


def test_few_examples_at_a_time_change_nothing(monkeypatch):
    s = make(Encoder)
    whole = gm.measure(s, "hessian-distance", steps=1)["value"]
    monkeypatch.setattr(module, "HELD", {"cpu": 1})
    parts = gm.measure(make(Encoder), "hessian-distance", steps=1)["value"]
    assert torch.allclose(torch.tensor(whole), torch.tensor(parts), rtol=1e-9, atol=1e-14)


def test_rows_that_nothing_depends_on_are_left_out_and_change_nothing(monkeypatch):
    """The head looks at the first token only."""
    s = make(Encoder)
    calls = []
    monkeypatch.setattr(module, "on_live_rows",
                        lambda step, t, rule=module.on_live_rows: calls.append(len(step.live)) or rule(step, t))
    ((found, _), *_) = both(s)
    assert calls
    monkeypatch.setattr(module, "MOST_LIVE", 0.0)
    calls.clear()
    ((whole, _), *_) = both(s)
    assert not calls
    for a, b in zip(found, whole, strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-14)


def test_rows_are_not_left_out_because_a_function_is_flat():
    """Its slopes are zero in some or all of the outputs, its curvature is not."""
    def flat(outputs, _):
        return (outputs - outputs.detach()).square().sum(1)

    def flat_in_part(outputs, batch):
        return flat(outputs, batch) + outputs[:, 0]
    for function in (flat, flat_in_part):
        for ours, twin in both(make(Encoder), function):
            assert torch.allclose(ours[1], twin[1], rtol=1e-10, atol=1e-13)
            assert (twin[1] != 0).all()


def test_one_pass_backward_unless_a_slope_is_zero(monkeypatch):
    passes, slopes = [], module.Recorded.slopes
    monkeypatch.setattr(module.Recorded, "slopes", lambda *a, **k: passes.append(1) or slopes(*a, **k))
    s = make(Encoder)
    taps, batch = find_taps(s.risk), next(iter(s.risk.batches))
    find_tangents(s.risk, taps)
    probes = {x.name: Probe(s.displacement(x)) for x in s.layers}
    found = []
    for function in (s.risk.losses_of, lambda outputs, _: outputs[:, 0]):
        passes.clear()
        before = s.risk.passes
        second_derivatives(s.risk, taps, batch, probes, function)
        found.append((len(passes), s.risk.passes - before))
    (one, cheaper), (two, dearer) = found
    assert (one, two) == (1, 2)
    assert dearer - cheaper == pytest.approx(len(batch) / s.risk.batches.size)
