"""Checkpoints that a study describes: made once, with the labels and the noise that were asked for, or only planned."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small
import torch

from genmeasure import fine_tuned
from genmeasure.checkpoints.build import build
from genmeasure.checkpoints.read import read
from genmeasure.checkpoints.write import write
from genmeasure.cli import main
from genmeasure.data.label_noise import symmetric_confusion
from genmeasure.data.readers import load
from genmeasure.errors import InputError
from genmeasure.fine_tuned import FineTuned, lacking, make
from genmeasure.plan import Machine, passes_of, size_of, to_make
from genmeasure.study import Request, run
from genmeasure.training.settings import Settings

SETTINGS = Settings(epochs=2, batch_size=16, device="cpu")


@pytest.fixture
def wanted(tmp_path: Path) -> list[FineTuned]:
    """Two methods on labels of which 30 % are wrong."""
    start, _ = small.pair("residual", seed=0)
    (x, y), (tx, ty) = small.images(), small.images(seed=1)
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=tx, y_test=ty)
    write(tmp_path / "start.safetensors", start.state_dict())
    data = tmp_path / "data.npz"
    return [FineTuned(method, tmp_path / "made" / f"{method}.safetensors", f"{small.FILE}:residual",
                      str(tmp_path / "start.safetensors"), f"{data}?noise=symmetric:rate=0.3,seed=5#train",
                      test=f"{data}#test", method=method, settings=SETTINGS, labels=(("method", method),))
            for method in ("consistent-loss", "sam")]


def test_noise_in_a_specification_makes_labels_wrong_and_says_how(tmp_path):
    x, y = small.images()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    clean, noisy = load(f"{tmp_path / 'data.npz'}"), load(f"{tmp_path / 'data.npz'}?noise=symmetric:rate=0.5,seed=1")
    classes = int(clean.labels.max()) + 1
    wrong = (noisy.labels != clean.labels).double().mean()
    assert 0.2 < wrong <= 0.5
    assert (next(iter(noisy)).clean == next(iter(clean)).targets).all()
    np.testing.assert_allclose(noisy.confusion, symmetric_confusion(0.5, classes), atol=1 / clean.size)
    assert clean.confusion is None
    other = load(f"{tmp_path / 'data.npz'}?noise=symmetric:rate=0.5,seed=2")
    assert (other.labels != noisy.labels).any()
    part = load(f"{tmp_path / 'data.npz'}?noise=symmetric:rate=0.5&rows=8")
    assert part.size == 8
    assert load("digits-5-9?noise=symmetric:rate=0.2#train").notes == ("label noise symmetric:rate=0.2",)


@pytest.mark.parametrize(("noise", "ending"), [
    ("0.4", "for data with one class per example"), ("symetric:rate=0.2", "did you mean 'symmetric'?"),
    ("symmetric:rate=2", "give a fraction between 0 and 1")])
def test_noise_that_cannot_be_made(tmp_path, noise, ending):
    x, y = small.images()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    with pytest.raises(InputError) as caught:
        load(f"{tmp_path / 'data.npz'}?noise={noise}")
    assert str(caught.value).endswith(ending)


def test_what_is_made_audits_and_is_not_made_twice(tmp_path, wanted, monkeypatch):
    made, train = [], fine_tuned.fine_tune
    monkeypatch.setattr(fine_tuned, "fine_tune", lambda *a, **k: made.append(k) or train(*a, **k))
    subjects = make(wanted, device="cpu")
    np.testing.assert_allclose(made[0]["confusion"], load(wanted[0].train).confusion)
    assert make(wanted, device="cpu") == subjects
    assert len(made) == 2
    make([replace(wanted[0], settings=replace(SETTINGS, epochs=1)), wanted[1]], device="cpu")
    assert len(made) == 3
    found = read(wanted[1].end).metadata
    assert (found["method"], len(json.loads(found["history"]))) == ("sam", 2)
    wanted[1].end.write_bytes(wanted[1].end.read_bytes()[:100])
    make(wanted, device="cpu")
    assert len(made) == 5

    readings = run(subjects, [Request("gap")], tmp_path / "out")
    assert (readings["error"] == "").all()
    assert set(readings["method"]) == {"consistent-loss", "sam"}
    assert "loss-gap-clean" in set(readings["term"])


def test_a_plan_counts_what_training_and_audits_take(tmp_path, wanted):
    sam = wanted[1]
    assert [w.passes for w in wanted] == [2, 4]
    examples, flops = size_of(sam)
    assert examples == len(small.images()[0])
    assert flops > 0
    assert size_of(replace(sam, train="absent.npz", examples=7, flops=3.0)) == (7, 3.0)
    requests = (Request("distance"), Request("gap"))
    assert passes_of(requests, tmp_path / "readings.csv") == (0.0, 0)
    run(make(wanted, device="cpu"), [Request("gap")], tmp_path / "out")
    assert passes_of(requests, tmp_path / "out" / "readings.csv") == (pytest.approx(2.0, abs=1.0), 1)
    text = to_make(wanted, requests, Machine(2, 1e9), tmp_path / "out" / "readings.csv")
    audit = passes_of(requests, tmp_path / "out" / "readings.csv")[0]
    hours = (3 * 6 + 2 * audit) * examples * flops / 1e9 / 2 / 3600
    assert f"{hours:.3g} hours on 2 processes" in text
    assert "from 1 of 2 requests" in text
    nothing = to_make([replace(sam, train="absent.npz")], requests, Machine(2, 1e9), tmp_path / "none.csv")
    assert nothing.endswith("without 1 kinds whose model or data are not here")
    assert "into the same folder first" in nothing


def test_what_is_lacking_is_said(tmp_path, wanted):
    assert lacking(wanted) == []
    absent = replace(wanted[0], start=str(tmp_path / "none.safetensors"), train="absent.npz", test=None,
                     model="no_such:thing")
    said = lacking([absent])
    assert [s.split(":")[0].split()[0] for s in said] == ["model", "start", "data"]
    assert "install it, or name a file as in path/to/file.py:function" in said[0]
    assert said[1].endswith("download it, or give its path")


def test_a_start_that_is_drawn(tmp_path, wanted):
    """The file holds what the model draws with the seed, and the training begins there."""
    start = tmp_path / "drawn" / "start.safetensors"
    drawn = replace(wanted[1], start=str(start), drawn=True, settings=replace(SETTINGS, learning_rate=0.0, seed=3))
    assert lacking([drawn]) == []
    assert lacking([replace(drawn, drawn=False)])[0].endswith("download it, or give its path")
    make([drawn], device="cpu")
    expected = dict(build(drawn.model, seed=3).named_parameters())
    for path in (start, drawn.end):
        found = read(path).tensors
        for name, parameter in expected.items():
            torch.testing.assert_close(found[name], parameter.detach(), rtol=0, atol=0)


STUDY = '''
from pathlib import Path
import numpy as np, small
from genmeasure.fine_tuned import FineTuned, make
from genmeasure.study import Request
from genmeasure.training.settings import Settings

SCALES = ("quick", "small")

def REQUESTS(scale):
    return [Request("distance")] if scale == "quick" else [Request("distance"), Request("gap")]

def CHECKPOINTS(scale):
    folder = Path("FOLDER")
    return [FineTuned(f"seed-{{s}}", folder / scale / f"{{s}}.safetensors", f"{{small.FILE}}:residual",
                      str(folder / "start.safetensors"), str(folder / "data.npz") + "#train",
                      test=str(folder / "data.npz") + "#test", settings=Settings(epochs=1, device="cpu"))
            for s in range(1 if scale == "quick" else 2)]

def SUBJECTS(scale):
    return make(CHECKPOINTS(scale), device="cpu")
'''


def test_scales_of_a_study(tmp_path, wanted, capsys):
    study = tmp_path / "study.py"
    study.write_text(STUDY.replace("{{", "{").replace("}}", "}").replace("FOLDER", str(tmp_path)))
    assert main(["run", str(study), "--quick", "--plan", "2x1e9", "--out", str(tmp_path / "quick")]) == 0
    assert capsys.readouterr().out.endswith("nothing is missing on this machine\n")
    assert not (tmp_path / "quick").exists()
    assert main(["run", str(study), "--quick", "--out", str(tmp_path / "quick")]) == 0
    assert "of 1 checkpoints, 0 failed" in capsys.readouterr().out
    assert main(["run", str(study), "--out", str(tmp_path / "out")]) == 0
    assert "of 2 checkpoints, 0 failed" in capsys.readouterr().out
    assert main(["run", str(study), "--full", "--out", str(tmp_path / "full")]) == 2
    assert capsys.readouterr().err.endswith("name 'full' in its SCALES\n")
