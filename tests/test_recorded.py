"""Third rung: numbers of other tools, recorded by the scripts in tests/recorded. Neither tool is needed here."""

import json
import math
from pathlib import Path

import pytest
from recorded.network import ACTIVATIONS, batches, network

import genmeasure as gm

RECORDED = Path(__file__).with_name("recorded")
ROUTES = [("tanh", "split"), ("tanh", "hutchinson"), ("relu", "gauss-newton"), ("relu", "hutchinson")]
APART = 4.5
"""Standard errors: among the 16 traces compared with each tool, a larger deviation has a chance of one in 9,000."""


def numbers(tool, activation):
    return json.loads((RECORDED / f"{tool}.json").read_text())[activation]


@pytest.fixture(scope="module")
def subjects():
    models = {activation: network(activation) for activation in ACTIVATIONS}
    return {k: gm.subject(m, m, batches(), dtype="float64", device="cpu") for k, m in models.items()}


def traces(subject, route):
    found = gm.measure(subject, "hessian-trace", route=route, rtol=0.005, layer_rtol=0.01, max_passes=150)
    return {row.layer: row for row in found.itertuples()}


@pytest.mark.parametrize(("activation", "route"), ROUTES)
def test_traces_agree_with_pyhessian(subjects, activation, route):
    theirs = numbers("pyhessian", activation)
    for layer, ours in traces(subjects[activation], route).items():
        expected = theirs["total"] if layer == "total" else theirs["layers"][layer]
        assert abs(ours.value - expected["value"]) < APART * math.hypot(ours.stderr, expected["stderr"]), layer


@pytest.mark.parametrize(("activation", "route"), ROUTES)
def test_traces_agree_with_the_exact_ones_of_curvlinops(subjects, activation, route):
    theirs = numbers("curvlinops", activation)
    for layer, ours in traces(subjects[activation], route).items():
        expected = theirs["total"] if layer == "total" else theirs["layers"][layer]
        assert abs(ours.value - expected) <= APART * ours.stderr + 1e-10 * abs(expected), layer


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_extreme_eigenvalues_agree_with_pyhessian_and_scipy(subjects, activation):
    found = gm.measure(subjects[activation], "hessian-top", rtol=1e-9, max_products=200)
    ours = {row.term: row.value for row in found.itertuples() if row.layer == "total"}
    exact, power = numbers("curvlinops", activation), numbers("pyhessian", activation)["top"]
    assert ours["largest"] == pytest.approx(exact["largest"], rel=1e-10)
    assert ours["smallest"] == pytest.approx(exact["smallest"], rel=1e-8)
    assert abs(ours["largest"] - power["value"]) <= power["residual"] + 1e-5 * ours["largest"]
