"""The benchmarks run and write what outside scripts read. No test asserts a time."""

import csv
import math
import subprocess
import sys
from pathlib import Path

import pytest

from genmeasure.curvature.gauss_newton import piecewise_linear
from genmeasure.errors import InputError

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "curvature.py"
COLUMNS = ["comparison", "ours", "theirs", "ratio", "at_equal", "passes_ours", "passes_theirs", "device", "torch",
           "date"]


def run(folder, *options):
    """The script's output and the rows it wrote."""
    done = subprocess.run([sys.executable, SCRIPT, "--quick", "--examples", "24", "--repeats", "1", "--out", folder,
                           *options], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    with (folder / "curvature-cpu.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == COLUMNS
    return done.stdout, rows


def check(rows):
    for row in rows:
        numbers = [float(row[key]) for key in ("ours", "theirs", "ratio", "passes_ours", "passes_theirs")]
        assert all(math.isfinite(x) and x > 0 for x in numbers), row
        assert float(row["ratio"]) == pytest.approx(float(row["theirs"]) / float(row["ours"]))
        assert row["at_equal"]


def test_forms_of_smooth_networks_need_no_other_tool(tmp_path):
    printed, rows = run(tmp_path, "--only", "smooth-forms")
    check(rows)
    assert len(rows) == 2
    assert all(row["comparison"] in printed and "EXTRAPOLATED linearly" in row["at_equal"] for row in rows)


@pytest.mark.slow
def test_every_comparison(tmp_path):
    pytest.importorskip("pyhessian")
    printed, rows = run(tmp_path)
    check(rows)
    assert len(rows) == 12
    assert "written: " in printed


def test_without_the_data_pack_a_digits_network_is_taken_and_the_reason_given(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import networks

    def absent(name):
        raise InputError(f"the file of {name!r} was not found")
    monkeypatch.setattr(networks.manifest, "verify", absent)
    case, reason = networks.piecewise_linear(24, 16, "cpu")
    assert reason.endswith("was not found")
    assert case.label == "ReLU digits network, 24 examples"
    assert (case.few.train.size, piecewise_linear(case.subject.risk)) == (16, True)


def test_an_unknown_comparison_is_refused():
    done = subprocess.run([sys.executable, SCRIPT, "--only", "speed"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("choose from traces-of-relu, forms, top-eigenvalue, traces-of-smooth, "
                                        "smooth-forms")


def test_the_recorded_results_have_the_columns():
    for path in (SCRIPT.parent / "results").glob("*.csv"):
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            check(list(reader))
            assert reader.fieldnames == COLUMNS
