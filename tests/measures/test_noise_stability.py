"""The readings of the curve and of its parabola: layers, covariances, the papers' draws, the plateau."""

import math

import pytest
import torch
from dense import TANH, Dense, make

import genmeasure as gm
from genmeasure.errors import InputError

SIGMA = 1e-3


@pytest.fixture(scope="module")
def smooth():
    s = make(TANH)
    dense = Dense(s)
    return s, dense, dense.hessian().diagonal()


@pytest.mark.parametrize("given", [{}, {"covariance": "norm"}, {"covariance": "weight"},
                                   {"layer_sigmas": (1.0, 0.5, 2.0)}], ids=str)
def test_layers_and_total_meet_their_parabolas(smooth, given):
    """At a small sigma, for every covariance; the parabola is that of the dense Hessian's diagonal."""
    s, dense, diagonal = smooth
    setting = {"sigmas": (SIGMA,), "per_layer": True, "rtol": 0.1, "max_passes": 400, **given}
    frame = gm.measure(s, "hessian-approximation", trace_rtol=0.02, **setting).set_index(["layer", "term"])
    curve = gm.measure(s, "noise-stability", **setting).set_index(["layer", "term"])
    factors = dict(zip([x.name for x in s.layers], given.get("layer_sigmas", (1.0,) * 3), strict=True))
    total = 0.0
    for layer, rows in zip(s.layers, dense.rows, strict=True):
        weight = dense.point[rows]
        spread = {"norm": weight.square().mean().sqrt(), "weight": weight.abs()}.get(given.get("covariance"), 1.0)
        truth = SIGMA**2 / 2 * ((factors[layer.name] * spread) ** 2 * diagonal[rows]).sum().item()
        total += truth
        found = frame.loc[(layer.name, "taylor")]
        assert abs(found["value"] - truth) < 4 * found["stderr"] + 1e-9 * abs(truth)
        drawn = curve.loc[(layer.name, "stability")]
        assert abs(drawn["value"] - truth) < 4 * drawn["stderr"]
    whole = frame.loc[("total", "taylor")]
    assert abs(whole["value"] - total) < 4 * whole["stderr"] + 1e-9 * abs(total)
    difference = frame.loc[("total", "relative-difference")]
    assert abs(difference["value"]) < 4 * difference["stderr"]
    size = SIGMA**2 / 2 * diagonal.abs().sum().item()
    assert curve.loc[("total", "stability"), "stderr"] < 0.5 * size


def test_one_sided_draws_state_their_spread():
    frame = gm.measure(make(TANH), "noise-stability", sigmas=(0.1, 0.3), one_sided=True, max_passes=5, rtol=0.0)
    at = frame.set_index(["sigma", "term"])
    for sigma in (0.1, 0.3):
        assert at.loc[(sigma, "stability"), "n"] == 5
        assert at.loc[(sigma, "sd"), "value"] == pytest.approx(math.sqrt(5) * at.loc[(sigma, "stability"), "stderr"])
    assert frame["passes"].iloc[0] == pytest.approx(5 * 2 + 1, abs=1)


def test_the_plateau_of_a_guess_is_marked(smooth):
    s, _, _ = smooth
    frame = gm.measure(s, "hessian-approximation", sigmas=(1e-3, 5.0, 10.0), max_passes=40)
    curve = gm.measure(s, "noise-stability", sigmas=(1e-3, 5.0, 10.0), max_passes=40).set_index(["sigma", "term"])
    late = [sigma for sigma in (1e-3, 5.0, 10.0) if curve.loc[(sigma, "perturbed-loss"), "value"] > 0.8 * math.log(3)]
    marked = frame[frame["term"] == "plateau-from"]
    assert late
    assert marked["value"].tolist() == late[:1]


def test_what_fits_no_layers_is_refused(smooth):
    with pytest.raises(InputError, match="in the order conv, inner, head$"):
        gm.measure(smooth[0], "noise-stability", layer_sigmas=(1.0,))
    assert torch.is_grad_enabled()
