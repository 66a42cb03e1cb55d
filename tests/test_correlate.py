"""Correlations: golden values, the slow twin of the bootstrap, special values, coverage."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from readings_factory import readings

from genmeasure.correlate import correlate, kendall, pearson, resample_counts, spearman
from genmeasure.errors import InputError


def table(gap, **quantities) -> pd.DataFrame:
    """Readings of one quantity per keyword; subjects are s0, s1, …"""
    rows = []
    for number, value in enumerate(gap):
        rows.append({"subject": f"s{number}", "measure": "gap", "term": "loss-gap", "value": value})
        for name, values in quantities.items():
            rows.append({"subject": f"s{number}", "measure": name, "value": values[number]})
    return pd.DataFrame(rows)


def row(result: pd.DataFrame, measure: str, group: str = "all") -> pd.Series:
    found = result[(result["measure"] == measure) & (result["group"] == group)]
    assert len(found) == 1
    return found.iloc[0]


def test_golden_with_ties():
    found = row(correlate(table([1, 3, 2, 4], mu=[1, 2, 2, 4])), "mu")
    assert found["kendall"] == pytest.approx(0.9128709292, abs=1e-10)
    assert found["spearman"] == pytest.approx(0.9486832981, abs=1e-10)
    assert found["pearson"] == pytest.approx(0.9233805169, abs=1e-10)
    assert (found["n"], found["pairs"], found["tied-pairs"], found["tied-pairs-gap"]) == (4, 6, 1, 0)


def test_golden_grid():
    grid = np.array(np.unravel_index(range(12), (3, 2, 2)))
    gap = grid[0] + 0.37 * grid[1] + 0.11 * grid[2] + 0.001 * np.arange(12)
    found = correlate(table(gap, mu=np.cos(3 * np.arange(12)), oracle=gap, anti=-gap, flat=np.ones(12),
                            transformed=np.exp(5 * gap)))
    assert row(found, "mu")["kendall"] == pytest.approx(-0.0909090909, abs=1e-10)
    for name in ("pearson", "spearman", "kendall"):
        assert row(found, "oracle")[name] == pytest.approx(1)
        assert row(found, "anti")[name] == pytest.approx(-1)
        assert row(found, "flat")[[name, f"{name}-low", f"{name}-high"]].tolist() == [0, 0, 0]
    assert row(found, "flat")["flag"] == "constant quantity"
    assert row(found, "transformed")["kendall"] == pytest.approx(1)
    assert row(found, "transformed")["pearson"] < 0.95
    assert row(found, "transformed")["pearson-log"] == pytest.approx(1)


def test_every_resample_agrees_with_scipy_on_the_repeated_values():
    generator = np.random.default_rng(3)
    x, g = generator.integers(0, 6, 15).astype(float), generator.integers(0, 9, 15).astype(float)
    counts = resample_counts(np.arange(15), 50, seed=1)
    for name, ours in {"pearsonr": pearson, "spearmanr": spearman, "kendalltau": kendall}.items():
        slow = [getattr(scipy.stats, name)(np.repeat(x, w.astype(int)), np.repeat(g, w.astype(int))).statistic
                for w in counts]
        np.testing.assert_allclose(ours(x, g, counts), slow, atol=1e-12)


def test_infinite_values_keep_their_rank_and_missing_ones_are_counted():
    found = correlate(table([1.0, 2, 3, 4, 5, 6], mu=[1, 2, 4, 3, np.inf, np.nan], huge=10.0 ** np.arange(303, 309)))
    mu = row(found, "mu")
    assert (mu["n"], mu["missing"], mu["nonfinite"]) == (5, 1, 1)
    assert mu["kendall"] == pytest.approx(scipy.stats.kendalltau([1, 2, 4, 3, 9], [1, 2, 3, 4, 5]).statistic)
    assert mu["pearson"] == pytest.approx(np.corrcoef([1, 2, 4, 3], [1, 2, 3, 4])[0, 1])
    assert 0 < row(found, "huge")["pearson"] < 1
    assert row(found, "huge")["pearson-log"] == pytest.approx(1)


def test_all_infinite_but_two_has_ranks_only():
    found = row(correlate(table([1.0, 2, 3, 4], mu=[1, 2, np.inf, np.inf])), "mu")
    assert np.isnan(found["pearson"])
    assert found["kendall"] > 0
    assert "Pearson" in found["flag"]


def test_constant_gap_is_flagged():
    assert row(correlate(table([1.0, 1, 1], mu=[1, 2, 3])), "mu")["flag"] == "constant gap"


def test_fewer_than_three_checkpoints_have_no_row():
    assert correlate(table([1.0, 2], mu=[1, 2])).empty
    assert "kendall-low" in correlate(table([1.0, 2], mu=[1, 2])).columns


def test_same_seed_same_interval_and_positive_rescaling_changes_nothing():
    frame = readings(seeds=[0])
    first, again = correlate(frame, resamples=100), correlate(frame, resamples=100)
    pd.testing.assert_frame_equal(first, again)
    scaled = frame.assign(value=frame["value"].mask(frame["measure"] == "hessian-trace", frame["value"] * 1e6))
    one, other = row(first, "hessian-trace"), row(correlate(scaled, resamples=100), "hessian-trace")
    for name in ("pearson", "pearson-low", "pearson-log", "spearman-high", "kendall-low"):
        assert one[name] == pytest.approx(other[name])


def test_groups_and_what_is_left_out():
    found = correlate(readings(), by="noise", resamples=50)
    assert list(found["group"].unique()) == ["all", "noise=0", "noise=0.2", "noise=0.4", "noise=0.6"]
    assert not found["term"].str.startswith("assumes:").any()
    assert set(found["layer"]) == {"", "total"}
    bounds = found[(found["measure"] == "neyshabur2018") & (found["term"] == "total") & (found["group"] == "all")]
    assert sorted(bounds["variant"]) == ["table", "theorem"]
    trace = found[(found["measure"] == "hessian-trace") & (found["group"] == "all")].iloc[0]
    assert (trace["n"], trace["missing"]) == (55, 1)


def test_clusters_are_resampled_whole():
    generator = np.random.default_rng(0)
    centre = generator.normal(size=12)
    gap, mu = np.repeat(centre + 0.8 * generator.normal(size=12), 8), np.repeat(centre, 8)
    frame = table(gap + 0.01 * generator.normal(size=96), mu=mu + 0.01 * generator.normal(size=96))
    frame["setting"] = [int(s[1:]) // 8 for s in frame["subject"]]
    each, whole = row(correlate(frame), "mu"), row(correlate(frame, cluster="setting"), "mu")
    assert (each["clusters"], whole["clusters"]) == (96, 12)
    assert each["pearson"] == whole["pearson"]
    assert whole["pearson-high"] - whole["pearson-low"] > 1.8 * (each["pearson-high"] - each["pearson-low"])


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    generator = np.random.default_rng(11)
    truth, hits = 0.6, {"pearson": 0, "kendall": 0}
    targets = {"pearson": truth, "kendall": 2 / np.pi * np.arcsin(truth)}
    for trial in range(200):
        x, g = generator.multivariate_normal([0, 0], [[1, truth], [truth, 1]], size=40).T
        found = row(correlate(table(g, mu=x), resamples=300, seed=trial), "mu")
        for name, value in targets.items():
            hits[name] += found[f"{name}-low"] <= value <= found[f"{name}-high"]
    for count in hits.values():
        assert 0.87 <= count / 200 <= 0.99


@pytest.mark.parametrize(("change", "words"), [
    (lambda f: (f[f["measure"] != "gap"], {}), "add 'gap' to the measures"),
    (lambda f: (f, {"gap": "los-gap"}), "did you mean 'loss-gap'?"),
    (lambda f: (f, {"by": "nois"}), "did you mean 'noise'?"),
    (lambda f: (f, {"cluster": ["method", "sed"]}), "did you mean 'seed'?"),
    (lambda f: (f.drop(columns="value"), {}), "pass the frame read from readings.csv"),
    (lambda f: (f.assign(value="much"), {}), "write failures to the column 'error'"),
    (lambda f: (f.assign(params="{"), {}), "leave the cell empty where there are none"),
    (lambda f: (pd.concat([f, f]), {}), "give the subjects different names or drop the copy"),
])
def test_bad_input(change, words):
    frame, options = change(readings(methods=["plain"], seeds=[0]))
    with pytest.raises(InputError, match="(?s)" + words.replace("?", r"\?") + "$"):
        correlate(frame, **options)
