"""Copies of a model that run together give what they give one after the other."""

from __future__ import annotations

import pytest
import small
import torch
from torch import nn

import genmeasure as gm
from genmeasure.curvature import noise
from genmeasure.curvature.noise import ISOTROPIC, Spreads, group_draws, group_size, survey
from genmeasure.curvature.perturbation import Perturbed
from genmeasure.curvature.stacked import Convolutions, copies_at_once, runs_of
from genmeasure.data.batches import Batches

SIGMAS = (0.01, 0.03)


class ByValue(nn.Module):
    """Looks at a number, which vmap does not take."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, x):
        return self.inner(x) * (2.0 if self.inner.weight.sum().item() > 1e9 else 1.0)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


def made(name: str):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name in ("by value", "attention"):
            net = ByValue() if name == "by value" else Attention()
            x = torch.randn(40, 6) if name == "by value" else torch.randn(40, 5, 8)
            return gm.subject(net, net, Batches.from_arrays(x, torch.arange(40) % 3), device="cpu", dtype="float64")
    start, end = small.pair(name)
    return gm.subject(end, start, small.batches(), device="cpu", dtype="float64")


def drawn(subject, spreads: Spreads = ISOTROPIC) -> tuple[torch.Tensor, float]:
    risk = subject.risk
    model = Perturbed(risk, risk.layers)
    model.find()
    before = risk.passes
    found = group_draws(risk, survey(risk), SIGMAS, range(3, 14), layers=risk.layers, spreads=spreads.of(risk),
                        numbers=(7, 0), model=model)
    return found, risk.passes - before


@pytest.mark.parametrize("name", ["residual", "smooth", "chain", "attention", "by value"])
@pytest.mark.parametrize("spreads", [Spreads(), Spreads("weight")], ids=["isotropic", "weight"])
def test_together_and_in_turn(name, spreads, monkeypatch):
    one, passes = drawn(made(name), spreads)
    ran = []
    monkeypatch.setattr(noise, "copies_at_once", lambda *_: 4)
    original = noise.stacked_losses
    monkeypatch.setattr(noise, "stacked_losses", lambda *given: ran.append(len(given[2])) or original(*given))
    subject = made(name)
    weights = {k: w.clone() for k, w in subject.state.items()}
    other, spent = drawn(subject, spreads)
    torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)
    assert spent == pytest.approx(passes)
    size = group_size(subject.risk)
    assert ran == ([] if name == "by value" else [4 * size, 4 * size, 3 * size])
    assert all(torch.equal(w, subject.state[k]) for k, w in weights.items())


def test_memory_that_is_short_cuts_between_and_within_groups(monkeypatch):
    one, _ = drawn(made("residual"))
    monkeypatch.setattr(noise, "copies_at_once", lambda *_: 3)
    size, sizes = group_size(made("residual").risk), []

    def short(*given):
        sizes.append(len(given[2]))
        raise RuntimeError("CUDA out of memory")
    monkeypatch.setattr(noise, "stacked_losses", short)
    other, _ = drawn(made("residual"))
    assert sizes == [3 * size]  # then a group and a half at a time, of which each part is a group's
    torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)


def test_one_copy_keeps_a_cpu_busy_and_unlike_batches_stay_apart():
    risk = made("residual").risk
    assert copies_at_once(risk, risk.layers) == 1
    batches = list(small.batches(12, batch_size=4)) + list(small.batches(3, batch_size=3))
    assert [len(b) for b in runs_of(batches, 4, 2)] == [8, 4, 3]


@pytest.mark.parametrize("settings", [{}, {"padding": 1}, {"stride": 2, "padding": (2, 1)}, {"dilation": 2},
                                      {"groups": 2}, {"padding": "same"}])
def test_convolutions_as_products_of_matrices(settings):
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 9, 8, dtype=torch.float64, generator=draws)
    layer = nn.Conv2d(4, 6, 3, **settings).double()
    expected = layer(x)
    with Convolutions():
        torch.testing.assert_close(layer(x), expected)
