"""Networks put down as lists of operations give what their own code and automatic differentiation give."""

import copy
import dataclasses
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import genmeasure as gm
from genmeasure.curvature.gauss_newton import gauss_newton_forms
from genmeasure.curvature.program import HELD, LEAST, Other, Product, Rectifier, Sum, find_program
from genmeasure.curvature.survey import survey
from genmeasure.curvature.taps import find_taps, slopes_along, squared_gradients
from genmeasure.data.batches import Batches
from genmeasure.engine.local import in_threads
from genmeasure.errors import InputError
from genmeasure.risk import Risk


class Bottleneck(nn.Module):
    """As torchvision writes it: rectifiers and sums in place, the shortcut computed last."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm, self.pool = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.MaxPool2d(2)
        self.conv1, self.bn1 = nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, 2, 1, groups=2, bias=False), nn.BatchNorm2d(4)
        self.conv3, self.bn3 = nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.downsample = nn.Sequential(nn.Conv2d(6, 8, 1, 2, bias=False), nn.BatchNorm2d(8))
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(8, 4)

    def forward(self, x):
        x = self.pool(self.relu(self.stem_norm(self.stem(x))))
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        identity = self.downsample(x)
        out += identity
        out = self.relu(out)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(out, 1), 1))


class Dense(nn.Module):
    """Concatenations, a normalisation before the rectifier, a convolution with a bias that two operations read."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3)
        self.last, self.drop, self.head = nn.Conv2d(9, 6, 3, dilation=2), nn.Dropout(0.5), nn.Linear(6, 4)

    def forward(self, x):
        x = self.first(x)
        new = self.second(F.relu(self.norm(x)))
        x = torch.cat([x[:, :, 1:-1, 1:-1], new], 1)
        x = self.drop(self.last(x.relu()).relu())
        return self.head(x.mean((2, 3)))


class Series(nn.Module):
    """One dimension, a weight used twice, sums of a value with itself, positions by a size read off."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.norm = nn.Conv1d(3, 5, 3, 2), nn.Conv1d(5, 5, 3, padding=1), nn.BatchNorm1d(5)
        self.hidden, self.head = nn.Linear(5 * 31, 7), nn.Linear(7, 4)

    def forward(self, x):
        x = self.first(x.flatten(2)[:, :, :64])
        x = torch.relu(self.again(x))
        x = torch.relu(self.norm(self.again(x)) + x)
        x = torch.add(x, x)
        return self.head(F.relu(self.hidden(x.view(x.size(0), -1))))


class Read(nn.Module):
    """Values that are read again after their rectifier, which therefore must not be written over."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        convolved = self.first(x)
        normal = self.norm(convolved)
        kept = torch.relu(normal)
        out = self.second(kept)
        both = torch.relu(out) + torch.relu(-out) + normal.abs() + 0.5 * convolved
        return self.head((both + kept).mean((2, 3)))


class Smooth(nn.Module):
    """Activations that have no rule of their own."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, 2), nn.Linear(4, 4)

    def forward(self, x):
        x = F.gelu(self.first(x)) * 1.5
        return self.head(torch.tanh(self.second(x)).amax((2, 3)))


class Broadcast(Smooth):
    """A sum of a picture and a number for each of its channels."""

    def forward(self, x):
        x = self.first(x)
        x = x + x.mean((2, 3), keepdim=True)
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


class Numbers(Smooth):
    """Sums with numbers, sizes among them, and with a tensor of its own."""

    def forward(self, x):
        x = self.first(x)
        x = x + x.size(1)
        x = torch.relu(x + x.shape[2] / 9) + torch.ones(1, dtype=x.dtype)
        return self.head(torch.relu(self.second(x)).mean((2, 3)) + (x.shape[2] + x.shape[3]))


class TwoTypes(Smooth):
    """Goes through other numbers than the weights' and back."""

    def forward(self, x):
        x = self.first(x)
        x = (x + x.double().mean((2, 3), keepdim=True)).to(self.head.weight.dtype)
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


class Clipped(Smooth):
    """Activations in place that have no rule, and a dropout in place that does nothing."""

    def __init__(self):
        super().__init__()
        self.clip, self.drop = nn.ReLU6(inplace=True), nn.Dropout(0.5, inplace=True)

    def forward(self, x):
        return self.head(self.clip(self.drop(self.second(self.clip(self.first(x))))).mean((2, 3)))


NETWORKS = [Bottleneck, Dense, Series, Read, Smooth, Broadcast, Numbers, TwoTypes, Clipped]


def subject(network, dtype="float64", examples=11, side=9, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, x = network(), torch.randn(examples, 3, side, side)
        for norm in (m for m in net.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))):
            norm.running_mean.uniform_(-0.3, 0.3)
            norm.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias, std=0.3)
        start = copy.deepcopy(net)
        for weight in start.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
    batches = Batches.from_arrays(x, torch.arange(examples) % 4, batch_size=6)
    return gm.subject(net, start, batches, dtype=dtype, device="cpu", **options)


def without(taps):
    return dataclasses.replace(taps, program=None)


@pytest.mark.parametrize("network", NETWORKS)
def test_all_that_taps_give_is_that_of_automatic_differentiation(network):
    s = subject(network)
    taps = find_taps(s.risk)
    assert taps.program is not None
    (batch, *_), generator = s.train, torch.Generator().manual_seed(1)
    vectors = {x.name: s.displacement(x) for x in s.layers}
    directions = torch.randn(3, len(batch), 4, generator=generator, dtype=torch.float64)
    for one, other in zip(slopes_along(s.risk, taps, batch, vectors, lambda _: directions),
                          slopes_along(s.risk, without(taps), batch, vectors, lambda _: directions), strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-13)
    one, other = (squared_gradients(s.risk, t, batch, lambda _: directions) for t in (taps, without(taps)))
    assert torch.allclose(one, other, rtol=1e-10, atol=1e-13)
    assert torch.allclose(gauss_newton_forms(s.risk, vectors, taps), gauss_newton_forms(s.risk, vectors, without(taps)),
                          rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("network", NETWORKS)
def test_outputs_are_those_of_the_network_and_its_batch_is_left_as_it_is(network):
    s = subject(network)
    found = find_program(s.risk)
    for batch in s.train:
        before = batch.inputs[0].clone()
        placed = s.risk.place(batch)
        assert torch.allclose(found.outputs(placed), s.risk.outputs({}, placed), rtol=1e-12, atol=1e-13)
        assert torch.equal(batch.inputs[0], before)


def torchvision_resnet(torchvision):
    return torchvision.models.resnet18(num_classes=4)


def torchvision_mobilenet(torchvision):
    return torchvision.models.mobilenet_v2(num_classes=4, width_mult=0.25)


def timm_convnext(torchvision):
    import timm
    return timm.models.ConvNeXt(num_classes=4, depths=(1, 1, 1, 1), dims=(4, 6, 8, 10), ls_init_value=0.5)


def timm_densenet(torchvision):
    import timm
    return timm.models.DenseNet(growth_rate=4, block_config=(2, 2), num_classes=4)


@pytest.mark.parametrize("build", [torchvision_resnet, torchvision_mobilenet, timm_convnext, timm_densenet])
def test_networks_of_real_libraries(torchvision, build):
    s = subject(lambda: build(torchvision), examples=4, side=33)
    taps = find_taps(s.risk)
    assert taps.program is not None
    (batch, *_), generator = s.train, torch.Generator().manual_seed(1)
    directions = torch.randn(2, len(batch), 4, generator=generator, dtype=torch.float64)
    one, other = (squared_gradients(s.risk, t, batch, lambda _: directions) for t in (taps, without(taps)))
    assert (other > 0).any(0).any(0).all()
    assert torch.allclose(one, other, rtol=1e-9, atol=1e-12 * other.max().item())


def test_what_becomes_one_operation():
    kinds = [type(step) for step in find_program(subject(Bottleneck).risk).steps]
    assert [kinds.count(kind) for kind in (Product, Rectifier, Sum)] == [6, 4, 1]  # no normalisation is left
    assert kinds.count(Other) == 3  # two ways of pooling, and flatten
    products = [step for step in find_program(subject(Read).risk).steps if isinstance(step, Product)]
    assert [step.scale is None for step in products] == [True] * 3  # the convolution's own output is read as well


def test_of_some_layers_only():
    """What is remembered of all layers numbers the uses of other weights."""
    s = subject(Bottleneck)
    find_taps(s.risk)
    (batch, *_), some = s.train, s.risk.restricted([s.layers[1], s.layers[4]])
    taps = find_taps(some)
    assert taps.program is not None
    directions = torch.randn(2, len(batch), 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one, other = (squared_gradients(some, t, batch, lambda _: directions) for t in (taps, without(taps)))
    assert one.shape == (2, len(batch), 2)
    assert torch.allclose(one, other, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("examples", [1, 2, 7])
def test_any_number_of_examples(examples):
    s = subject(Series, examples=examples)
    vectors = {x.name: s.displacement(x) for x in s.layers}
    taps = find_taps(s.risk)
    assert taps.program is not None
    assert torch.allclose(gauss_newton_forms(s.risk, vectors, taps), gauss_newton_forms(s.risk, vectors, without(taps)),
                          rtol=1e-10, atol=1e-15)


class ByValue(Smooth):
    def forward(self, x):
        return super().forward(x if x.isfinite().all() else -x)


class LaterRead(Smooth):
    """Reads for a convolution's output what a rectifier has written over it."""

    def forward(self, x):
        first = self.first(x)
        y = F.relu(first, inplace=True)
        return self.head(self.second(y).mean((2, 3)) + first.mean((2, 3)))


class InPlace(Smooth):
    def forward(self, x):
        x = self.first(x)
        x[:, :2] = 0
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


class Multiplied(Smooth):
    def forward(self, x):
        x = self.first(x)
        x.mul_(2)
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


class Several(Smooth):
    def forward(self, x):
        a, b = self.second(torch.relu(self.first(x))).chunk(2, 1)
        return self.head(torch.cat([b, a], 1).mean((2, 3)))


class Pair(Smooth):
    def forward(self, x):
        return super().forward(x), x


@pytest.mark.parametrize(("network", "reason"), [
    (ByValue, "cannot be used as inputs to control flow')"), (LaterRead, "in place on what is read later\")"),
    (InPlace, "does not support item assignment\")"), (Multiplied, "'mul_' in place\")"),
    (Several, "gives several tensors')"), (Pair, "are not one tensor')")])
def test_networks_that_cannot_be_put_down_run_by_their_own_code(network, reason, caplog):
    s = subject(network)
    with caplog.at_level("INFO", "genmeasure"):
        assert find_program(s.risk) is None
    assert caplog.messages[-1].endswith(reason)
    vectors = {x.name: s.displacement(x) for x in s.layers}
    taps = find_taps(s.risk)
    if taps is not None:
        assert taps.program is None
    assert gauss_newton_forms(s.risk, vectors, taps).isfinite().all()


def test_hooks_are_not_passed_over():
    s = subject(Dense)
    s.model.first.register_forward_hook(lambda *given: 2 * given[-1])
    assert find_program(s.risk) is None


def test_padding_by_name_has_no_rule():
    """The survey may run it all the same; taps must not, since a use of a weight would be missed."""
    class Same(Smooth):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3, padding="same")
    s = subject(Same)
    taps = find_taps(s.risk)
    assert taps is not None
    assert taps.program is None
    assert find_program(s.risk) is not None


class Caching(Smooth):
    """Keeps what it computes first, and what it has seen."""

    def __init__(self):
        super().__init__()
        self.scale, self.seen = None, []

    def forward(self, x):
        x = self.first(x)
        if self.scale is None:
            self.scale = x.detach().abs().mean() * 0 + 2
        self.seen.append(x.detach())
        return self.head(torch.relu(self.second(x * self.scale)).mean((2, 3)))


def test_a_network_that_keeps_things_is_left_without_traces_of_the_look_at_it():
    s = subject(Caching)
    find_program(s.risk)
    assert all(type(x) is torch.Tensor for x in (*s.model.seen, s.model.scale) if x is not None)
    assert s.risk.outputs({}, s.risk.place(next(iter(s.train)))).isfinite().all()


@pytest.mark.parametrize("network", [Bottleneck, TwoTypes])
def test_float32_stays_within_rounding(network):
    exact, rounded = subject(network), subject(network, "float32")
    vectors = {x.name: exact.displacement(x) for x in exact.layers}
    one = gauss_newton_forms(exact.risk, vectors, without(find_taps(exact.risk)))
    other = gauss_newton_forms(rounded.risk, {k: v.float() for k, v in vectors.items()}, find_taps(rounded.risk))
    assert ((one - other).abs() <= 1e-5 * one.max(0).values).all()


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_threads_change_nothing(two_threads):
    s = subject(Bottleneck, examples=60)
    vectors = {x.name: s.displacement(x) for x in s.layers}
    found, passes = [], []
    for threads in (2, 1):
        torch.set_num_threads(threads)
        fresh = subject(Bottleneck, examples=60)
        found.append((gauss_newton_forms(fresh.risk, vectors, find_taps(fresh.risk)), survey(fresh.risk).sizes))
        passes.append(fresh.risk.passes)
        assert torch.get_num_threads() == threads
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-14)
    assert passes[0] == pytest.approx(passes[1])


def test_a_loss_whose_hessian_takes_forward_mode(two_threads):
    for _ in range(3):
        s = subject(Bottleneck, examples=120, loss="clamped-cross-entropy")
        assert find_program(s.risk).core_each
        assert survey(s.risk).sizes.isfinite().all()


def test_results_come_in_order_and_with_the_callers_modes(two_threads):
    with torch.no_grad():
        found = list(in_threads(lambda n: (n, torch.is_grad_enabled(), torch.get_num_threads()), range(20)))
    assert found == [(n, False, 1) for n in range(20)]
    assert torch.get_num_threads() == 2


def test_an_error_in_a_thread_is_the_callers(two_threads):
    def fails(number):
        if number == 3:
            raise ValueError("example 3")
        return number
    with pytest.raises(ValueError, match="example 3$"):
        list(in_threads(fails, range(100)))
    assert torch.get_num_threads() == 2


def test_a_nan_is_named_from_any_thread(two_threads):
    s = subject(Bottleneck, examples=60)
    list(s.train)[4].inputs[0][2] = torch.nan
    with pytest.raises(InputError, match="on example 26 of .* --dtype float64$"):
        survey(s.risk)


def test_few_examples_at_a_time_where_outputs_are_large():
    found = find_program(subject(Bottleneck).risk)
    assert found.at_once is not None
    assert found.at_once >= LEAST

    class Wide(Smooth):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 2_000, 3, padding=1), nn.Conv2d(2_000, 4, 3, 2)
    assert find_program(subject(Wide).risk).at_once is None


def test_all_layers_or_some_take_as_many_at_a_time():
    """What counts is the largest value, whatever makes it: here a convolution that has no rule."""
    class Padded(Smooth):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")

        def forward(self, x):
            x = self.first(F.interpolate(x, scale_factor=8))
            return self.head(torch.relu(self.second(x)).mean((2, 3)))
    s = subject(Padded)
    assert find_program(s.risk).at_once == HELD // (4 * 72**2) > LEAST
    assert find_program(s.risk.restricted(s.layers[1:])).at_once == find_program(s.risk).at_once


class Coupled(Smooth):
    """Takes the mean of all examples away."""

    def forward(self, x):
        x = self.first(x)
        return self.head(torch.relu(self.second(x - 0.1 * x.mean(0))).mean((2, 3)))


def test_examples_that_depend_on_each_other_are_not_taken_in_other_parts():
    s = subject(Bottleneck)
    network = Coupled().double().eval().requires_grad_(False)
    risk = Risk(network, s.loss, [dataclasses.replace(x, parameter=y) for x, y in zip(
        s.layers, ("first.weight", "second.weight", "head.weight"), strict=False)][:3], s.train, s.risk.engine)
    assert find_program(risk) is None


def test_a_subject_travels_without_its_programs():
    s = subject(Bottleneck)
    survey(s.risk)
    assert find_program(s.risk) is not None
    other = pickle.loads(pickle.dumps(s.shared))
    assert other.programs == {}
    assert other.passes == s.shared.passes


def test_looking_at_a_network_costs_nothing():
    s, t = subject(Bottleneck), subject(Bottleneck)
    find_program(s.risk)
    assert s.risk.passes == 0
    one, other = find_taps(s.risk), find_taps(t.risk)
    assert one.program is not None
    assert other.program is not None
    assert s.risk.passes == t.risk.passes
