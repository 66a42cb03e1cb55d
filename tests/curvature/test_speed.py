"""What is done for speed alone changes no number beyond rounding."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import genmeasure as gm
from genmeasure.curvature.calls import batch_norm
from genmeasure.curvature.gauss_newton import gauss_newton_forms, of_like_counts
from genmeasure.curvature.taps import find_taps
from genmeasure.data.batches import Batches

BLOCKED = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


class Net(nn.Module):
    """Convolutions with a shortcut that drops positions, and a head behind `end`."""

    def __init__(self, end):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.head, self.end = nn.Conv2d(8, 8, 3, 2, 1), nn.Linear(128, 4), end

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return self.head(self.end(torch.relu(self.second(x) + x[:, :, ::2, ::2])))


def viewed(x):
    return x.view(len(x), -1)


def strided(x):
    """Takes it for granted that positions are last in memory."""
    return x.as_strided((len(x), 128), (128, 1))


def subject(end, dtype="float32"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, x = Net(end), torch.randn(21, 3, 8, 8)
        start = copy.deepcopy(net)
        for weight in start.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
    net.norm.running_mean.uniform_(-0.2, 0.2, generator=torch.Generator().manual_seed(1))
    return gm.subject(net, start, Batches.from_arrays(x, torch.arange(21) % 4, batch_size=8), dtype=dtype, device="cpu")


def forms(s):
    taps = find_taps(s.risk)
    assert taps is not None
    return gauss_newton_forms(s.risk, {x.name: s.displacement(x) for x in s.layers}, taps)


@BLOCKED
@pytest.mark.parametrize(("end", "last"), [(nn.Flatten(), True), (viewed, False), (strided, False)],
                         ids=["flatten", "view", "as_strided"])
def test_channels_are_last_where_the_network_runs_on_such_images(end, last):
    s = subject(end)
    batch = next(iter(s.train))
    placed = s.risk.place_for_speed(batch)
    assert placed.inputs[0].is_contiguous(memory_format=torch.channels_last) == last
    assert torch.equal(placed.inputs[0], batch.inputs[0])
    exact = forms(subject(nn.Flatten(), "float64"))
    assert torch.allclose(forms(s), exact, rtol=1e-4, atol=1e-5 * exact.max().item())


def test_other_dtypes_and_networks_keep_their_order():
    linear, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.arange(48.0).reshape(4, 3, 2, 2)
    without = gm.subject(linear, linear, Batches.from_arrays(x, torch.arange(4) % 2), device="cpu")
    for s in (subject(nn.Flatten(), "float64"), without):
        batch = next(iter(s.train))
        before = s.risk.passes
        assert s.risk.place_for_speed(batch).inputs[0].is_contiguous()
        assert s.risk.passes == before


@pytest.mark.parametrize("spatial", [(), (5,), (4, 3)])
@pytest.mark.parametrize("given", ["weight and bias", "weight", "bias", "neither"])
def test_batch_norm_written_out(spatial, given):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, *spatial, generator=generator, dtype=torch.float64, requires_grad=True)
    mean, variance, weight, bias = torch.rand(4, 3, generator=generator, dtype=torch.float64) + 0.5
    rest = (weight if "weight" in given else None, bias if "bias" in given else None)
    for setting in ((False, 0.1, 1e-3), (True, 0.0, 1e-3)):
        ours, theirs = (f(x, mean, variance, *rest, *setting) for f in (batch_norm, F.batch_norm))
        assert torch.allclose(ours, theirs, rtol=1e-12)
        (slope,), (expected,) = (torch.autograd.grad((y * y.detach().sin()).sum(), x) for y in (ours, theirs))
        assert torch.allclose(slope, expected, rtol=1e-10, atol=1e-12)


def test_batches_of_like_counts():
    counts = torch.tensor([9] * 16 + [8] * 10 + [7] * 17 + [6] * 22 + [1] * 70)
    found = list(of_like_counts(counts, 64, 16))
    assert [len(counts[part]) for part in found] == [16, 27, 22, 64, 6]
    assert torch.equal(torch.cat([counts[part] for part in found]), counts)
    assert [len(counts[part]) for part in of_like_counts(counts[:20], 1, 1)] == [1] * 20
