"""Predictive power over a grid: published sanity values, slow literal twins, invariances."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from readings_factory import readings

from genmeasure.correlate import resample_counts
from genmeasure.errors import InputError
from genmeasure.predictive.granulated import granulated
from genmeasure.predictive.grid import Grid
from genmeasure.predictive.mutual_information import mutual_information
from genmeasure.predictive.partial import partial_spearman
from genmeasure.predictive.pgdl import pgdl
from genmeasure.predictive.power import predictive_power
from genmeasure.predictive.sign_error import pair_weight, sign_error

CODES = np.array(np.unravel_index(range(12), (3, 2, 2))).T
GRID = Grid.of(pd.DataFrame(CODES, columns=["a", "b", "c"]))
GAP = CODES[:, 0] + 0.37 * CODES[:, 1] + 0.11 * CODES[:, 2] + 0.001 * np.arange(12)
ONE = np.ones((1, 12))
KNOWN = {  # psi, K, sign error without weights
    "oracle": (GAP, (1, 1, 1), 1, 0), "anti-oracle": (-GAP, (-1, -1, -1), 1, 1),
    "one axis": (CODES[:, 0].astype(float), (1, 0, 0), 0, 0.25), "constant": (np.zeros(12), (0, 0, 0), 0, 0.5)}


def errors(mu, gap=GAP, **given):
    return sign_error(mu, gap / 10, GRID, ONE, **{"test_examples": 10**9, "least_effective": 0.0, **given})


@pytest.mark.parametrize("name", KNOWN)
def test_sanity(name):
    mu, psi, information, error = KNOWN[name]
    assert granulated(mu, GAP, GRID, ONE)[0][0] == pytest.approx(psi)
    assert mutual_information(mu, GAP, GRID, ONE)[0][0] == pytest.approx(information, abs=1e-12)
    found, axes = errors(mu)
    assert len(axes) == 24
    assert found.mean() == pytest.approx(error)
    if name == "one axis":
        assert mutual_information(mu, GAP, GRID, ONE)[1] == ("a",)


def test_golden():
    mu = np.cos(3 * np.arange(12))
    psi, skipped = granulated(mu, GAP, GRID, ONE)
    assert psi[0] == pytest.approx([0, 0, -1])
    assert skipped == 0
    information, chosen = mutual_information(mu, GAP, GRID, ONE)
    assert information[0] == pytest.approx(0.0059697885, abs=1e-10)
    assert chosen == ()


def test_golden_weights_of_pairs():
    weights = pair_weight(np.array([0.01, 0.0196, 0.02, -0.03, 0.05]), 10_000)
    assert weights == pytest.approx([0, 0, 0.0319214226, 0.4560576531, 0.4999850934], abs=1e-10)


def repeated(x, g, codes, counts):
    rows = np.repeat(np.arange(len(x)), counts.astype(int))
    return x[rows], g[rows], codes[rows], rows


def literal_granulated(x, g, codes, rows):
    """Twin: cell by cell and pair by pair."""
    psi = []
    for axis in range(codes.shape[1]):
        taus = []
        others = np.delete(codes, axis, 1)
        for cell in np.unique(others, axis=0):
            members = np.flatnonzero((others == cell).all(1))
            pairs = [(i, j) for i, j in itertools.combinations(members, 2) if codes[i, axis] != codes[j, axis]]
            if any(g[i] != g[j] for i, j in pairs):
                taus.append(np.mean([np.sign(x[i] - x[j]) * np.sign(g[i] - g[j]) for i, j in pairs]))
        psi.append(np.mean(taus) if taus else math.nan)
    return psi


def literal_information(x, g, codes, rows, conditioning):
    """Twin: probabilities counted in dictionaries."""
    best = math.inf
    for size in range(3):
        for subset in itertools.combinations(range(codes.shape[1]), size):
            cells: dict = {}
            for i, j in itertools.permutations(range(len(x)), 2):
                left, right = tuple(codes[i, list(subset)]), tuple(codes[j, list(subset)])
                if rows[i] == rows[j] or (conditioning == "equal" and left != right):
                    continue
                pair = (np.sign(x[i] - x[j]), np.sign(g[i] - g[j]))
                cells.setdefault((left, right), []).append(pair)
            total = sum(map(len, cells.values()))
            information = entropy = 0.0
            for pairs in cells.values():
                share, n = len(pairs) / total, len(pairs)
                for a, b in set(pairs):
                    p, px = pairs.count((a, b)) / n, sum(q[0] == a for q in pairs) / n
                    information += share * p * math.log(p / (px * sum(q[1] == b for q in pairs) / n))
                for b in {q[1] for q in pairs}:
                    p = sum(q[1] == b for q in pairs) / n
                    entropy -= share * p * math.log(p)
            if entropy > 1e-12:
                best = min(best, information / entropy)
    return best


def test_every_resample_agrees_with_its_literal_twin():
    generator = np.random.default_rng(4)
    codes = np.array(np.unravel_index(range(18), (3, 2, 3))).T[:, :2]  # three repeats of each setting
    grid = Grid.of(pd.DataFrame(codes, columns=["a", "b"]))
    x, g = generator.integers(0, 7, 18).astype(float), generator.normal(size=18)
    counts = resample_counts(np.arange(18), 12, seed=1)
    psi, _ = granulated(x, g, grid, counts)
    both, equal = (mutual_information(x, g, grid, counts, conditioning=c)[0] for c in ("both", "equal"))
    for row, w in enumerate(counts):
        parts = repeated(x, g, codes, w)
        assert psi[row] == pytest.approx(literal_granulated(*parts), nan_ok=True)
        assert both[row] == pytest.approx(literal_information(*parts, "both"))
        assert equal[row] == pytest.approx(literal_information(*parts, "equal"))


def test_sign_error_by_hand():
    """Two settings with two seeds each: four pairs, of which the test set tells three apart."""
    grid = Grid.of(pd.DataFrame({"method": ["p", "p", "q", "q"]}))
    g, x = np.array([0.10, 0.20, 0.105, 0.30]), np.array([1.0, 4.0, 2.0, 3.0])
    pairs = [(0, 2), (0, 3), (1, 2), (1, 3)]
    weights = [pair_weight(np.array(g[i] - g[j]), 10_000).item() for i, j in pairs]
    wrong = [(1 - np.sign(x[i] - x[j]) * np.sign(g[i] - g[j])) / 2 for i, j in pairs]
    assert weights[0] == 0
    assert wrong == [0, 0, 0, 1]
    found, axes = sign_error(x, g, grid, np.ones((1, 4)), test_examples=10_000, least_effective=2.0)
    assert axes == ["method"]
    assert found[0, 0] == pytest.approx(np.average(wrong, weights=weights))
    assert np.isnan(sign_error(x, g, grid, np.ones((1, 4)), test_examples=10_000)[0]).all()


def test_partial_correlation_against_residuals_of_ranks():
    generator = np.random.default_rng(0)
    z = generator.normal(size=30)
    x, g = z + generator.normal(size=30), z + generator.normal(size=30)
    counts = resample_counts(np.arange(30), 5, seed=0)
    found = partial_spearman(x, g, z, counts)
    for value, w in zip(found, counts, strict=True):
        rows = np.repeat(np.arange(30), w.astype(int))
        ranks = pd.DataFrame({"x": x[rows], "g": g[rows], "z": z[rows]}).rank()
        line = np.stack([np.ones(30), ranks["z"]], 1)
        left = [ranks[c] - line @ np.linalg.lstsq(line, ranks[c], rcond=None)[0] for c in "xg"]
        assert value == pytest.approx(np.corrcoef(*left)[0, 1])
    assert np.isnan(partial_spearman(x, g, x, np.ones((1, 30)))).all()


def literal_pgdl(x, g, codes):
    """Twin of the starting kit's rule, from its description."""
    scores = []
    for subset in itertools.combinations(range(codes.shape[1]), 2):
        values = sorted({tuple(row) for row in codes[:, subset]})
        informations, entropies = [], []
        for u, w in itertools.product(values, repeat=2):
            table = np.zeros((2, 2))
            for i, j in itertools.product(range(len(x)), repeat=2):
                if tuple(codes[i, subset]) == u and tuple(codes[j, subset]) == w:
                    table[int(x[i] > x[j]), int(g[i] > g[j])] += 1
            p = table / table.sum()
            px, pg = p.sum(1), p.sum(0)
            informations.append(sum(p[a, b] * math.log(p[a, b] / (px[a] * pg[b])) for a in (0, 1) for b in (0, 1)
                                    if p[a, b]))
            entropies.append(-sum(q * math.log(q) for q in pg if q))
        scores.append(sum(informations) / sum(entropies))
    return 100 * min(scores)


@pytest.mark.parametrize("mu", [np.cos(3 * np.arange(12)), GAP, -GAP, np.sin(np.arange(12)) + GAP])
def test_pgdl_score(mu):
    assert pgdl(mu, GAP, GRID) == pytest.approx(literal_pgdl(mu, GAP, CODES[:, :]))


def test_pgdl_refuses_what_it_is_not_defined_for():
    with pytest.raises(InputError, match="needs each exactly once$"):
        pgdl(GAP[1:], GAP[1:], GRID.chosen(np.arange(12) > 0))
    with pytest.raises(InputError, match="conditions on two of them$"):
        pgdl(GAP, GAP, Grid.of(pd.DataFrame({"a": CODES[:, 0]})))


def errors_of(x, g, grid):
    return sign_error(x, g / 10, grid, ONE, test_examples=10**6, least_effective=0.0)[0].mean()


def test_order_names_and_scale_do_not_matter():
    generator = np.random.default_rng(2)
    mu, shuffle = generator.normal(size=12), generator.permutation(12)
    named = Grid.of(pd.DataFrame(CODES, columns=["a", "b", "c"]).replace({"a": {0: "x", 1: "u", 2: "m"}}).iloc[shuffle])
    for f in (lambda *a: granulated(*a, ONE)[0], lambda *a: mutual_information(*a, ONE)[0],
              lambda x, g, grid: errors_of(x, g, grid)):
        assert f(5 * mu[shuffle], GAP[shuffle], named) == pytest.approx(f(mu, GAP, GRID))


def test_table():
    frame = readings(methods=["plain", "mixup", "sam"], seeds=[0, 1, 2], failures=False)
    frame = frame[frame["measure"].isin(["gap", "hessian-trace"])]
    table = predictive_power(frame, axes=["method", "noise"], cluster=["method", "noise"], given="noise",
                             test_examples=10_000, resamples=40)
    assert not table.duplicated(["measure", "variant", "layer", "sigma", "term"]).any()
    assert set(table.loc[table["measure"] == "gap", "term"]) == {"loss-train", "error-train"}  # the rest is the gap
    base = table[table["measure"] == "baseline"].set_index("term")
    for name in ("tau-a", "granulated", "mutual-information"):
        assert base.loc["oracle", name] == pytest.approx(1)
    assert base.loc["anti-oracle", "granulated"] == pytest.approx(-1)
    assert base.loc["anti-oracle", "mutual-information"] == pytest.approx(1)
    assert base.loc["constant", "tau-a"] == base.loc["constant", "mutual-information"] == 0
    assert abs(base.loc["random", "tau-a"]) < 0.5
    assert base.loc["oracle", "n"] == 36
    assert base.loc["oracle", "clusters"] == 12
    trace = table[(table["measure"] == "hessian-trace")].iloc[0]
    assert trace["granulated-low"] <= trace["granulated"] <= trace["granulated-high"]
    assert trace["psi:method"] + trace["psi:noise"] == pytest.approx(2 * trace["granulated"])
    again = predictive_power(frame, axes=["method", "noise"], cluster=["method", "noise"], given="noise",
                             test_examples=10_000, resamples=40)
    pd.testing.assert_frame_equal(table, again)


@pytest.mark.parametrize(("options", "words"), [
    ({"axes": ["metod"]}, "did you mean 'method'?"), ({"axes": []}, "the grid with axes=…"),
    ({"axes": ["method"], "gap": "los-gap"}, "did you mean 'loss-gap'?")])
def test_bad_input(options, words):
    with pytest.raises(InputError) as caught:
        predictive_power(readings(methods=["plain", "sam"], seeds=[0]), **options)
    assert str(caught.value).endswith(words)
