"""The benchmarks run and write what outside scripts read. No test asserts a time."""

import csv
import math
import subprocess
import sys
from pathlib import Path

import pytest

from genmeasure.curvature.gauss_newton import piecewise_linear
from genmeasure.errors import InputError

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPT = FOLDER / "curvature.py"
COLUMNS = ["comparison", "ours", "theirs", "ratio", "at_equal", "passes_ours", "passes_theirs", "device", "torch",
           "date"]


@pytest.fixture
def benchmarks(monkeypatch):
    """The scripts' folder, from which they import each other."""
    monkeypatch.syspath_prepend(FOLDER)


def run(folder, *options):
    """The script's output and the rows it wrote."""
    done = subprocess.run([sys.executable, SCRIPT, "--quick", "--examples", "24", "--repeats", "1", "--out", folder,
                           *options], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
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
    printed, rows = run(tmp_path, "--only", "forms-of-smooth")
    check(rows)
    assert len(rows) == 4
    assert all(row["comparison"] in printed and "EXTRAPOLATED linearly" in row["at_equal"] for row in rows)
    assert not any("NOT EQUAL" in row["at_equal"] for row in rows)


@pytest.mark.slow
def test_comparisons_with_other_tools_keep_the_rows_of_others(tmp_path):
    pytest.importorskip("pyhessian")
    _, before = run(tmp_path, "--only", "papers-recipe")
    printed, rows = run(tmp_path, "--only", "traces-of-relu", "forms-of-relu", "growth")
    check(rows)
    assert [row["comparison"].split(":")[0] for row in rows] == ["traces-of-relu"] * 3 + ["papers-recipe"] + \
        ["forms-of-relu"] * 2 + ["growth"] * 2
    assert rows[3] == before[0]
    assert "written: " in printed


@pytest.mark.slow
def test_a_training_step_of_every_algorithm_is_measured(tmp_path):
    from genmeasure import registry
    done = subprocess.run([sys.executable, FOLDER / "training.py", "--quick", "--examples", "4", "--repeats", "1",
                           "--only", "step-of-transformer", "--out", tmp_path], capture_output=True, text=True,
                          timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "training-cpu.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    check(rows)
    named = {row["comparison"].split(": ", 1)[1].split(",")[0] for row in rows}
    assert {member.name for member in registry.algorithm} < named


def test_a_comparison_replaces_its_own_rows_only(benchmarks):
    from harness import merged
    old = [{"comparison": text} for text in ("forms: old", "memory: old", "a row of an older script")]
    new = [{"comparison": "forms: new"}, {"comparison": "forms: newer"}]
    assert [row["comparison"] for row in merged(old, "forms", new, ["memory", "forms"])] == [
        "memory: old", "forms: new", "forms: newer"]


def test_a_comparison_that_is_left_out_or_fails_leaves_the_others_alone(benchmarks, tmp_path, capsys):
    from harness import Row, Skipped, main

    def done(setting):
        yield Row("what, a / b", 2.0, 6.0, "equal", 1.0, 9.0)

    def absent(setting):
        yield Row("what, a / c", 2.0, 6.0, "equal", 1.0, 9.0)
        raise Skipped("tool c is not installed")

    def broken(setting):
        raise ZeroDivisionError
        yield
    comparisons = {"absent": absent, "broken": broken, "done": done}
    status = main("some", "Some.", comparisons, ["--out", str(tmp_path)])
    printed = capsys.readouterr()
    assert (status, "ZeroDivisionError" in printed.err) == (1, True)
    assert "  left out: tool c is not installed\n" in printed.out
    assert printed.out.endswith("FAILED: broken\n")
    with (tmp_path / "some-cpu.csv").open(newline="") as file:
        found = [(row["comparison"], row["ratio"]) for row in csv.DictReader(file)]
    assert found == [("absent: what, a / c", "3.0"), ("done: what, a / b", "3.0")]  # what was finished is kept


def test_products_are_extrapolated_at_the_rate_that_was_seen(benchmarks):
    from traces import extrapolated, observed_rate
    assert observed_rate(10, 0.08, 40, 0.02) == pytest.approx(1)
    assert observed_rate(10, 0.04, 40, 0.04) == pytest.approx(0.5)
    assert extrapolated(10, 0.04, 0.02, 0.5) == pytest.approx(40)
    assert extrapolated(12, 0.04, 0.02, 1.0) == pytest.approx(24)


def test_a_peak_of_memory_is_seen(benchmarks):
    import torch
    from memory import CLEAR, peak
    if not CLEAR.exists():
        pytest.skip("needs /proc")
    assert 60 < peak(torch.device("cpu"), lambda: torch.ones(2**24).sum().item()) < 80


def test_without_the_data_pack_a_digits_network_is_taken_and_the_reason_given(benchmarks, monkeypatch, capsys):
    import networks

    def absent(name):
        raise InputError(f"the file of {name!r} was not found")
    monkeypatch.setattr(networks.manifest, "verify", absent)
    case = networks.piecewise_linear.__wrapped__(24, "cpu")
    assert capsys.readouterr().out.endswith("was not found\n")
    assert case.label == "ReLU digits network, 24 examples"
    assert (case.first(10).train.size, piecewise_linear(case.subject.risk)) == (10, True)


def test_an_unknown_comparison_is_refused():
    done = subprocess.run([sys.executable, SCRIPT, "--only", "speed"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("forms-of-encoder, forms-of-smooth, eigenvalues, audit, growth, memory")


def test_the_recorded_results_have_the_columns():
    for path in (FOLDER / "results").glob("*.csv"):
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            check(list(reader))
            assert reader.fieldnames == COLUMNS
