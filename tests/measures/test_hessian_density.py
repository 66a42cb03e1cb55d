"""The spectral density of Hessian and Gauss-Newton matrix as readings."""

import pytest
import torch
from dense import RELU, TANH, Dense, make

import genmeasure as gm
from genmeasure.errors import InputError


@pytest.fixture(scope="module", params=[RELU, TANH], ids=["relu", "tanh"])
def both(request):
    s = make(request.param)
    return s, Dense(s)


def readings(s, name="hessian-density", **given):
    frame = gm.measure(s, name, **given)
    return {(row.layer, row.term): row for row in frame.itertuples()}


def points(found, layer):
    return {float(term.removeprefix("density@")): row for (name, term), row in found.items()
            if name == layer and term.startswith("density@")}


def test_moments_are_within_their_errors_for_all_layers_and_each(both):
    s, dense = both
    found = readings(s, per_layer=True, probes=24, steps=6)
    for layer, rows in {**dict(zip([x.name for x in s.layers], dense.rows, strict=True)), "total": slice(None)}.items():
        values = torch.linalg.eigvalsh(dense.hessian()[rows, rows])
        for degree in (1, 2, 3, 4):
            row = found[layer, f"moment-{degree}"]
            assert abs(row.value - (values**degree).mean().item()) <= 4 * row.stderr + 1e-12
            assert row.n == 24
        assert {row.unit for row in points(found, layer).values()} == {"weight²/loss"}
    units = [found["total", f"moment-{d}"].unit for d in (1, 2, 3, 4)]
    assert units == ["loss/weight²", "loss²/weight⁴", "loss³/weight⁶", "loss⁴/weight⁸"]


def test_the_density_integrates_to_one_and_covers_the_spectrum(both):
    s, dense = both
    found = readings(s)
    curve, width = points(found, "total"), found["total", "width"].value
    assert sum(row.value for row in curve.values()) * width == pytest.approx(1, abs=2e-4)
    values = torch.linalg.eigvalsh(dense.hessian())
    assert max(curve) >= values[-1]
    assert 40 <= len(curve) <= 120
    wide = readings(s, width=2 * width)
    assert wide["total", "width"].value == 2 * width
    assert len(points(wide, "total")) < 0.7 * len(curve)


def test_negative_mass_counts_what_is_below_the_stated_tolerance(both):
    s, dense = both
    found = readings(s, probes=16, steps=30, tolerance=0.5)
    width, mass = found["total", "width"].value, found["total", "negative-mass"]
    truth = (torch.linalg.eigvalsh(dense.hessian()) < -0.5 * width).double().mean().item()
    assert abs(mass.value - truth) <= 4 * mass.stderr + 0.03
    assert readings(s, tolerance=1e6)["total", "negative-mass"].value == 0


def test_gauss_newton_has_no_negative_mass_and_the_hessians_trace_for_relu(both):
    s, dense = both
    found = readings(s, "gauss-newton-density", probes=30, steps=6)
    assert found["total", "negative-mass"].value == 0
    if s.model.activation is RELU:
        trace = dense.hessian().trace().item() / len(dense.point)
        row = found["total", "moment-1"]
        assert abs(row.value - trace) <= 4 * row.stderr


def test_rtol_draws_on(both):
    row = readings(both[0], rtol=0.2, steps=4, max_probes=60)["total", "moment-1"]
    assert 21 <= row.n <= 60


@pytest.mark.parametrize(("given", "ending"), [
    ({"probes": 1}, "give probes=2 or more"), ({"steps": 2}, "give steps=3 or more"),
    ({"width": -0.1}, "give numbers that are not negative"), ({"width": 1e-9}, "or more"),
])
def test_bad_input(both, given, ending):
    with pytest.raises(InputError, match=f"{ending}$"):
        gm.measure(both[0], "hessian-density", **given)
