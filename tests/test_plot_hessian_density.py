"""The figure of the spectral density: what it shows, and that report and correlations know its terms."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from readings_factory import one_subject, readings

from genmeasure import plots
from genmeasure.correlate import correlate
from genmeasure.errors import InputError
from genmeasure.report.page import write_report


def with_density(frame: pd.DataFrame, measure: str = "hessian-density") -> pd.DataFrame:
    rows = []
    for number, (name, part) in enumerate(frame.groupby("subject", sort=False)):
        labels = {c: part[c].iloc[0] for c in ("method", "noise", "seed") if c in part}
        for x in np.arange(-5, 30) * 0.1:
            value = np.exp(-0.5 * (x / 0.3) ** 2) + 0.01 * (number + 1) * np.exp(-0.5 * ((x - 2) / 0.2) ** 2)
            rows.append({"study": "demo", "subject": name, "measure": measure, "kind": "measure", "layer": "total",
                         "term": f"density@{x:.9g}", "value": value, "stderr": 0.1 * value, "n": 5,
                         "unit": "weight²/loss", "params": json.dumps({"seed": 0}), "error": "", **labels})
    return pd.concat([frame, pd.DataFrame(rows)], ignore_index=True)


def test_one_checkpoint_has_a_curve_with_a_band_on_a_logarithmic_axis():
    drawn = plots.hessian_density(with_density(one_subject()))
    panel = drawn.axes[0]
    assert panel.get_yscale() == "log"
    assert len(panel.lines) == len(panel.collections) == 1
    assert panel.lines[0].get_xdata() == pytest.approx(np.arange(-5, 30) * 0.1)
    low, high = panel.get_ylim()
    assert low == pytest.approx(1e-6 * panel.lines[0].get_ydata().max())
    assert high > 1.27  # five probes: 2.78 standard errors
    assert "eigenvalue of the Hessian" in panel.get_xlabel()
    assert not drawn.legends


def test_many_checkpoints_are_coloured_by_group_without_bands():
    frame = with_density(readings(methods=["plain", "sam", "mixup"], seeds=[0]))
    drawn = plots.hessian_density(frame, by="noise")
    assert len(drawn.axes[0].lines) == 12
    assert not drawn.axes[0].collections
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["0", "0.2", "0.4", "0.6"]


def test_files_report_and_correlations(tmp_path):
    frame = with_density(with_density(one_subject()), "gauss-newton-density")
    names = {p.name for p in plots.write_plots(frame, tmp_path / "plots")}
    assert {"hessian-density.svg", "gauss-newton-density.png"} <= names
    frame.to_csv(tmp_path / "readings.csv", index=False)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "bands are 95 % intervals over probes" in page
    study = with_density(readings(methods=["plain"], seeds=[0]))
    assert not correlate(study, resamples=10)["term"].str.startswith("density@").any()


@pytest.mark.parametrize(("given", "words"), [({}, "expected the measure 'hessian-density'; add it to the measures"),
                                              ({"layer": "fc"}, "add it to the measures")])
def test_bad_input(given, words):
    frame = with_density(one_subject()) if given else one_subject()
    with pytest.raises(InputError, match=f"{words}$"):
        plots.hessian_density(frame, **given)


@pytest.mark.parametrize("module", ["plots", "report", "tables"])
def test_what_is_shown_can_be_imported_first(module):
    subprocess.run([sys.executable, "-c", f"import genmeasure.{module}"], check=True)
