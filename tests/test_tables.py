"""Shown tables: their numbers, their formats, and what fails or overflows."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from readings_factory import CLASSES, SIGMAS, one_subject, readings

from genmeasure import tables
from genmeasure.correlate import correlate
from genmeasure.errors import InputError
from genmeasure.predictive.power import predictive_power
from genmeasure.readings import read, tidy
from genmeasure.report.markup import latex, latex_text, markdown
from genmeasure.report.numbers import interval, number


@pytest.fixture(scope="module")
def study() -> pd.DataFrame:
    return readings()


def test_bounds_by_variant_with_range_overflow_assumptions_and_failures(study):
    table = tables.bound_comparison(study).set_index(["bound", "variant"])
    assert list(table.index) == [("neyshabur2018", "table"), ("neyshabur2018", "theorem"), ("li2021", "theorem"),
                                 ("li2021", "table"), ("ju2022", "")]
    totals = study.query("measure == 'ju2022' and term == 'total'")["value"]
    ours = table.loc[("ju2022", "")]
    assert (ours["value"], ours["value low"], ours["value high"]) == (totals.median(), totals.min(), totals.max())
    assert 0 < ours["vacuous"] < 1
    assert ours["violated assumptions"] == ""
    overflowing = table.loc[("li2021", "table")]
    assert overflowing["value"] == math.inf
    assert 319 < overflowing["log10"] < 321
    assert (overflowing["checkpoints"], overflowing["failed"]) == (55, 1)
    assert overflowing["violated assumptions"] == "bounded-loss"


def test_an_assumption_violated_by_some_is_counted(study):
    names = study["subject"].unique()[:5]
    part = study[study["subject"].isin(names)]
    checks = (part["term"] == "assumes:no-batch-norm") & (part["measure"] == "ju2022")
    broken = checks & part["subject"].isin(names[:2])
    table = tables.bound_comparison(part.assign(value=part["value"].mask(broken, 0.0))).set_index("bound")
    assert table.loc["ju2022", "violated assumptions"] == "no-batch-norm (2 of 5)"


def test_noise_stability_of_one_subject_keeps_its_own_error():
    frame = one_subject()
    table = tables.noise_stability_vs_hessian(frame, classes=CLASSES)
    assert tuple(table["sigma"]) == SIGMAS
    given = frame.query("measure == 'noise-stability' and term == 'stability'")
    np.testing.assert_allclose(table["stability"], given["value"])
    np.testing.assert_allclose(table["stability stderr"], given["stderr"])
    assert list(table["valid"]) == [True] * 8 + [False] * 3
    assert table["agree"].iloc[0]
    assert not table["agree"].iloc[-1]
    assert list(table["plateau"]) == [False] * 10 + [True]
    assert tables.noise_stability_vs_hessian(frame)["plateau"].isna().all()
    validity = tables.hessian_validity(frame).iloc[0]
    assert (validity["valid to"], validity["never valid"]) == (0.0125, 0)


def test_noise_stability_averages_checkpoints_of_a_group(study):
    table = tables.noise_stability_vs_hessian(study, by="noise")
    given = study.query("measure == 'noise-stability' and term == 'stability' and sigma == 0.002 and noise == 0.2")
    row = table.query("group == 'noise=0.2' and sigma == 0.002").iloc[0]
    assert row["stability"] == pytest.approx(given["value"].mean())
    assert row["stability stderr"] == pytest.approx(given["value"].std() / math.sqrt(14))
    without = study[~study["term"].isin(["valid-from", "valid-to"])]
    validity = tables.hessian_validity(without, by="noise")
    assert (validity["never valid"] == 14).all()
    assert validity["valid to"].isna().all()


def test_a_curve_without_a_parabola_is_shown_alone():
    frame = one_subject()
    table = tables.noise_stability_vs_hessian(frame[frame["measure"] != "hessian-approximation"])
    assert table["taylor"].isna().all()
    assert table["stability"].notna().all()


def test_correlation_table(study):
    found = correlate(study, by="noise", resamples=50)
    table = tables.correlation(found).set_index("quantity")
    assert table["Kendall"].is_monotonic_decreasing
    one = found.query("measure == 'hessian-trace' and group == 'noise=0.4'").iloc[0]
    row = table.loc["hessian-trace · total"]
    assert row["Kendall, noise=0.4"] == one["kendall"]
    assert row["note"] == "1 missing"
    assert "li2021 (table) · log10" in table.index
    assert not table.index.str.contains("conv1|taylor").any()


def test_checkpoints(study):
    table = tables.checkpoints(study).set_index("subject")
    assert len(table) == 56
    assert list(table.columns[:3]) == ["method", "noise", "seed"]
    assert math.isnan(table.loc["plain-0-1", "trace"])
    assert table.loc["plain-0-1", "failed"] == 1
    assert table.loc["plain-0.2-0", "failed"] == 2
    only = study[study["measure"] == "gap"]
    assert "trace" not in tables.checkpoints(only)


def test_every_table_is_written_and_read_back(study, tmp_path):
    made = tables.all_tables(study, correlate(study, resamples=20), classes=CLASSES)
    assert list(made) == ["bounds", "published-bounds", "noise-stability", "hessian-validity", "correlations",
                          "checkpoints"]
    written = tables.write_tables(made, tmp_path / "tables")
    assert len(written) == 18
    again = pd.read_csv(tmp_path / "tables" / "bounds.csv")
    np.testing.assert_array_equal(again["value"], made["bounds"]["value"])
    assert tables.write_tables(made, tmp_path / "again")[2].read_bytes() == written[2].read_bytes()
    for path in written:
        if path.suffix == ".tex":
            assert path.read_text(encoding="utf-8").startswith(r"\begin{tabular}{")


def test_predictive_power(study):
    some = study[study["measure"].isin(["gap", "hessian-trace", "ju2022"])]
    power = predictive_power(some, axes=["method", "noise"], cluster=["method", "noise"], resamples=10)
    table = tables.all_tables(some, power=power)["predictive-power"]
    assert table.set_index("quantity").loc["baseline: oracle", "granulated"] == 1
    assert table["granulated"].is_monotonic_decreasing
    assert {"psi:method", "psi:noise", "granulated low", "mutual information"} <= set(table)
    assert "sign error, mean" not in table


def test_only_failures_leave_an_empty_value_and_no_zero():
    frame = pd.DataFrame([{"subject": "a", "measure": "neyshabur2018", "kind": "certificate", "value": np.nan,
                           "error": "boom"}])
    made = tables.all_tables(frame)
    assert math.isnan(made["bounds"]["value"].iloc[0])
    assert made["bounds"]["failed"].iloc[0] == 1
    assert made["checkpoints"]["failed"].iloc[0] == 1


def test_markdown_and_latex_escape():
    table = pd.DataFrame({"name_1": ["a|b", "50 % & x_y $", "<b>"], "v": [1.62e6, -0.5, math.nan],
                          "v stderr": [3e4, 0.012, math.nan]})
    assert markdown(table) == ("| name\\_1 | v |\n| :-- | --: |\n| a\\|b | (1.620 ± 0.030)×10⁶ |\n"
                               "| 50 % & x\\_y \\$ | −0.500 ± 0.012 |\n| \\<b\\> | – |\n")
    lines = latex(table).splitlines()
    assert lines[2] == r"name\_1 & v \\"
    assert lines[4] == r"a\textbar{}b & (1.620 $\pm$ 0.030) $\times 10^{6}$ \\"
    assert lines[5] == r"50 \% \& x\_y \$ & $-$0.500 $\pm$ 0.012 \\"
    assert latex_text("\\alpha ∞ 10⁶ ") == r"\textbackslash{}alpha $\infty$ 10⁶ "


@pytest.mark.parametrize(("value", "stderr", "shown"), [
    (0.5314, 0.012, "0.531 ± 0.012"), (0.5314, math.nan, "0.5314"), (0.01, 0.0, "0.01"), (12.0, 340.0, "12 ± 340"),
    (1.62e6, math.nan, "1.62×10⁶"), (-2.5e-7, 1e-9, "(−2.500 ± 0.010)×10⁻⁷"), (0.0, math.nan, "0"),
    (math.inf, math.nan, "∞"), (-math.inf, 1.0, "−∞"), (math.nan, 1.0, "–"), (1e305, math.nan, "1.000×10³⁰⁵"),
    (9999.6, math.nan, "10000"), (1.0, math.inf, "1"), (15098.2, 302.0, "15098 ± 302"), (1.0, 1e-9, "1"),
])
def test_numbers(value, stderr, shown):
    assert number(value, stderr) == shown


def test_intervals():
    assert interval(0.713, 0.5, 0.841) == "0.71 [0.50, 0.84]"
    assert interval(-1.0, -1.0, -1.0) == "−1"
    assert interval(2e11, 1e10, 3e12) == "2×10¹¹ [1×10¹⁰, 3×10¹²]"
    assert interval(math.nan, 0.0, 1.0) == "–"


def test_readings_survive_the_file(study, tmp_path):
    odd = study.assign(method="None", dataset="NA")
    odd.to_csv(tmp_path / "readings.csv", index=False, float_format="%.17g")
    again = tidy(read(tmp_path / "readings.csv"))
    pd.testing.assert_frame_equal(again, tidy(odd), check_dtype=False)
    assert set(again["method"]) == {"None"}
    with pytest.raises(InputError, match=r"run the study first$"):
        read(tmp_path / "nothing.csv")


def test_parameters_tell_repeated_readings_apart(study):
    part = study[(study["measure"] == "ju2022") & (study["subject"] == "plain-0-0")]
    other = part.assign(params='{"seed": 0, "loss_upper": 3.0}')
    assert list(tidy(pd.concat([part, other]))["variant"].unique()) == ["loss_upper=max-sample", "loss_upper=3"]
    assert set(tidy(part)["variant"]) == {""}
    twice = pd.concat([part, part.assign(study="other")])
    assert list(tidy(twice)["subject"].unique()) == ["demo: plain-0-0", "other: plain-0-0"]


def test_table_names_are_plain(tmp_path):
    with pytest.raises(InputError, match=r"rename it$"):
        tables.write_tables({"a/b": pd.DataFrame({"x": [1]})}, tmp_path)


def noise_rows():
    """Two requests of one checkpoint: pairs in total and per layer, and draws the papers' way."""
    rows = []

    def add(measure, layer, sigma, term, value, stderr=0.1, **params):
        rows.append({"subject": "a", "measure": measure, "layer": layer, "sigma": sigma, "term": term, "value": value,
                     "stderr": stderr, "n": 20, "params": json.dumps({"seed": 0, **params})})
    for sigma, taylor, stability in ((0.1, 1.0, 1.1), (0.2, 4.0, 5.0)):
        for layer, share in (("conv", 0.25), ("head", 0.75), ("total", 1.0)):
            add("noise-stability", layer, sigma, "stability", share * stability)
            add("hessian-approximation", layer, sigma, "taylor", share * taylor)
            add("hessian-approximation", layer, sigma, "paper", 2 * share * taylor)
            add("hessian-approximation", layer, sigma, "relative-difference", 1 - taylor / stability)
        add("noise-stability", "total", sigma, "stability", 2 * stability, one_sided=True)
        add("noise-stability", "total", sigma, "sd", 0.5, one_sided=True)
    return pd.DataFrame(rows)


def test_the_published_shape_takes_the_draws_of_the_papers_way():
    table = tables.published_noise_stability(noise_rows())
    assert table["noise stability"].tolist() == [2.2, 10.0]
    assert table["noise stability sd"].tolist() == [0.5, 0.5]
    assert table["Hessian approximation (paper)"].tolist() == [2.0, 8.0]
    assert np.isnan(table["relative RSS"].iloc[0])
    assert table["relative RSS"].iloc[1] == pytest.approx((1.2**2 + 6.0**2) / (2.2**2 + 10.0**2))
    assert table["relative RSS (paper)"].iloc[1] == pytest.approx((0.2**2 + 2.0**2) / (2.2**2 + 10.0**2))
    assert "2.20 ± 0.50" in markdown(table)
    assert tables.published_noise_stability(noise_rows()[lambda f: f["term"] != "sd"]).empty


def test_of_two_requests_the_first_stands_in_the_table_of_the_curve():
    table = tables.noise_stability_vs_hessian(noise_rows())
    assert table["stability"].tolist() == [1.1, 5.0]


def test_layers_have_their_own_curve_and_parabola():
    table = tables.layer_noise_stability(noise_rows())
    assert table["layer"].tolist() == ["conv", "conv", "head", "head"]
    assert table["stability"].tolist() == pytest.approx([0.275, 1.25, 0.825, 3.75])
    assert table["taylor"].tolist() == pytest.approx([0.25, 1.0, 0.75, 3.0])
    assert tables.layer_noise_stability(noise_rows()[lambda f: f["layer"] == "total"]).empty
