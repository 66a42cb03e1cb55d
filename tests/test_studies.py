"""Every study that comes in scales: its quick one runs through, its full one can be planned."""

import ast
from pathlib import Path

import pytest

from genmeasure.cli import main
from genmeasure.data import manifest
from genmeasure.errors import InputError
from genmeasure.readings import read

ANALYSIS = Path(__file__).parents[1] / "analysis"


def scales(path: Path) -> tuple[str, ...]:
    """The study's SCALES, read without running it."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [t.id for t in node.targets if isinstance(t, ast.Name)] == ["SCALES"]:
            return ast.literal_eval(node.value)
    return ()


def studies(scale: str) -> list[Path]:
    return [path for path in sorted(ANALYSIS.glob("*.py")) if scale in scales(path)]


def test_studies_in_scales_are_found():
    assert {"measure_vs_gap_resnet", "bound_comparison"} <= {path.stem for path in studies("full")}
    assert all(scales(path)[:2] == ("quick", "small") for path in studies("quick"))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A study writes below the working directory."""
    try:
        manifest.path("aka_resnet20")
    except InputError:
        pytest.skip("the data pack is not there; set GENMEASURE_DATA to its folder")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("study", studies("quick"), ids=lambda p: p.stem)
def test_the_quick_scale_runs_through(study, elsewhere, capsys):
    assert main(["run", str(study), "--quick", "--out", f"out/{study.stem}-quick", "--engine", "local:1"]) == 0
    assert ", 0 failed" in capsys.readouterr().out
    readings = read(elsewhere / "out" / f"{study.stem}-quick" / "readings.csv")
    assert (readings["error"] == "").all()
    assert set(readings["study"]) == {study.stem}
    assert (elsewhere / "out" / f"{study.stem}-quick" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("study", studies("full"), ids=lambda p: p.stem)
def test_the_full_scale_can_be_planned(study, elsewhere, capsys):
    assert main(["run", str(study), "--full", "--plan", "8x1e13", "--out", "out/full"]) in (0, 1)
    said = capsys.readouterr().out
    assert "checkpoints to train" in said
    assert "hours on 8 processes" in said
    assert "without" not in said.split("hours on 8 processes")[1].split("\n")[0]
    assert "missing" in said
    assert not (elsewhere / "out" / "full").exists()
