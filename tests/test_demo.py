"""The demo, cut down: what it writes, what it makes again, and that its files audit to its own readings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from genmeasure import demo, fine_tuned, study
from genmeasure.checkpoints.read import read
from genmeasure.cli import main
from genmeasure.data.digits import digits
from genmeasure.data.readers import load
from genmeasure.engine import LocalEngine
from genmeasure.errors import InputError

METHODS = {"plain": {}, "layer-ball": {"radius": 0.3}, "consistent-loss": {}}
REQUESTS = (study.Request("distance"), study.Request("gap"),
            study.Request("noise-stability", {"sigmas": (0.01, 0.02), "max_passes": 2}))


def cut_down(patch) -> None:
    patch.setattr(demo, "METHODS", METHODS)
    patch.setattr(demo, "NOISES", (0.0, 0.4))
    patch.setattr(demo, "PRETRAINING", replace(demo.PRETRAINING, epochs=1))
    patch.setattr(demo, "FINE_TUNING", replace(demo.FINE_TUNING, epochs=1))


@pytest.fixture
def small_demo(monkeypatch):
    """Cut down, with a list of what was trained: `start` or (method, noise, seed)."""
    cut_down(monkeypatch)
    trained, fine_tune = [], demo.fine_tune

    def counting(model, algorithm, *data, **more):
        trained.append(more["settings"])
        return fine_tune(model, algorithm, *data, **more)
    for module in (demo, fine_tuned):
        monkeypatch.setattr(module, "fine_tune", counting)
    return trained


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        cut_down(patch)
        make(folder)
    return folder


def make(folder: Path, seeds: int = 2) -> list:
    return demo.make_checkpoints(folder, seeds=seeds, device="cpu", engine=LocalEngine(1))


def checkpoints(folder: Path) -> dict[str, int]:
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns
            for p in sorted((folder / "checkpoints").rglob("*.safetensors"))}


def test_every_method_noise_and_seed_but_no_correction_without_noise(made):
    names = {"start", "plain-noise-0.0", "plain-noise-0.4", "layer-ball-noise-0.0", "layer-ball-noise-0.4",
             "consistent-loss-noise-0.4"}
    assert set(checkpoints(made)) == {f"checkpoints/seed-{s}/{n}.safetensors" for s in (0, 1) for n in names}
    assert not [p for p in made.rglob("*") if ".part" in p.name or p.name.startswith(".")]


def test_splits_are_disjoint_and_only_training_labels_are_noisy(made):
    runs = [run for run in demo.plan(made, 2) if run.method == "plain"]
    for run in runs:
        train, validation, test = map(load, (run.train, run.validation, run.test))
        splits = digits(classes=(5, 6, 7, 8, 9), seed=0)
        index = [set(splits[split]["index"].tolist()) for split in ("train", "validation", "test")]
        assert len(set.union(*index)) == sum(map(len, index)) == 896
        for data, split in zip((train, validation, test), ("train", "validation", "test"), strict=True):
            assert torch.equal(torch.cat([batch.inputs[0] for batch in data]), splits[split]["x"])
        clean = torch.cat([batch.clean for batch in train])
        rate = dict(run.labels)["noise"]
        assert (train.labels != clean).double().mean() == pytest.approx(rate, abs=0.01)
        assert next(iter(train)).inputs[0].shape[1:] == (1, 8, 8)
        assert set(test.labels.tolist()) == set(range(5))
        np.testing.assert_allclose(train.confusion.sum(1), 1)
        assert train.size == demo.EXAMPLES
    one, two = (load(run.train) for run in runs if dict(run.labels)["noise"] == 0.4)
    assert torch.equal(next(iter(one)).inputs[0], next(iter(two)).inputs[0])
    assert (one.labels != two.labels).any()


def test_checkpoints_say_how_they_were_made(made):
    found = read(made / "checkpoints" / "seed-1" / "layer-ball-noise-0.4.safetensors")
    recipe = json.loads(found.metadata["recipe"])
    assert recipe["parameters"] == {"radius": 0.3}
    assert (recipe["settings"]["epochs"], recipe["settings"]["seed"]) == (1, 1)
    assert (found.metadata["method"], found.metadata["seed"]) == ("layer-ball", "1")
    assert found.metadata["train"] == "digits-5-9?noise=symmetric:rate=0.4,seed=1#train"
    assert found.metadata["model"] == demo.MODEL
    assert [e["number"] for e in json.loads(found.metadata["history"])] == [1]


def test_a_seed_shares_one_start_whose_head_is_fresh(made):
    starts = [read(made / "checkpoints" / f"seed-{s}" / "start.safetensors") for s in (0, 1)]
    files = {seed: (made / "checkpoints" / f"seed-{seed}").glob("*-noise-*.safetensors") for seed in (0, 1)}
    recipes = {s: {json.loads(read(p).metadata["recipe"])["start"] for p in paths} for s, paths in files.items()}
    assert len(recipes[0]) == len(recipes[1]) == 1
    assert recipes[0] != recipes[1]
    fresh = demo.build(demo.MODEL, seed=1001).state_dict()
    assert torch.equal(starts[1].tensors["head.weight"], fresh["head.weight"])
    assert not torch.equal(starts[1].tensors["stem.weight"], starts[0].tensors["stem.weight"])


def test_nothing_is_trained_twice_and_what_changed_or_broke_is(tmp_path, small_demo, monkeypatch):
    first = make(tmp_path, seeds=1)
    assert len(small_demo) == 1 + len(first) == 6
    before = checkpoints(tmp_path)
    assert make(tmp_path, seeds=1) == first
    assert checkpoints(tmp_path) == before
    assert len(small_demo) == 6

    broken = tmp_path / "checkpoints" / "seed-0" / "plain-noise-0.4.safetensors"
    content = broken.read_bytes()
    (tmp_path / "kept.safetensors").write_bytes(content)
    whole = read(tmp_path / "kept.safetensors")
    broken.write_bytes(content[:len(content) // 2])
    small_demo.clear()
    make(tmp_path, seeds=1)
    assert len(small_demo) == 1
    mended = read(broken)
    assert mended.metadata == whole.metadata
    assert all(torch.equal(v, mended.tensors[k]) for k, v in whole.tensors.items())

    monkeypatch.setattr(demo, "METHODS", {**METHODS, "layer-ball": {"radius": 0.2}})
    small_demo.clear()
    make(tmp_path, seeds=1)
    changed = {k for k, v in checkpoints(tmp_path).items() if before[k] != v}
    remade = {f"checkpoints/seed-0/layer-ball-noise-{n}.safetensors" for n in (0.0, 0.4)}
    assert changed == {*remade, broken.relative_to(tmp_path).as_posix()}
    assert len(small_demo) == 2

    monkeypatch.setattr(demo, "FINE_TUNING", replace(demo.FINE_TUNING, learning_rate=1e-3))
    small_demo.clear()
    make(tmp_path, seeds=1)
    assert [s.learning_rate for s in small_demo] == [1e-3] * 5


def test_the_same_files_come_out_again(made, tmp_path, small_demo):
    make(tmp_path, seeds=1)
    for name in checkpoints(tmp_path):
        one, two = read(made / name), read(tmp_path / name)
        assert all(torch.equal(v, two.tensors[k]) for k, v in one.tensors.items()), name
        assert one.metadata == two.metadata  # safetensors writes it in any order, so bytes may differ


def test_the_checkpoints_audit_and_a_single_audit_agrees(made, tmp_path, small_demo):
    subjects = make(made)
    assert small_demo == []
    readings = study.run(subjects, REQUESTS, tmp_path / "study", study="demo")
    assert (readings["error"] == "").all()
    assert readings["subject"].nunique() == 10
    labels = readings.groupby("subject")[["method", "noise", "seed"]].first().loc["layer-ball-noise-0.4-seed-1"]
    assert labels.tolist() == ["layer-ball", 0.4, 1]
    distance = readings.query("measure == 'distance' and layer == 'total'").set_index("subject")["value"]
    assert distance["layer-ball-noise-0.4-seed-0"] < distance["plain-noise-0.4-seed-0"]

    chosen = next(s for s in subjects if s.name == "plain-noise-0.4-seed-1")
    status = main(["audit", "--start", chosen.start, "--end", chosen.end, "--model", demo.MODEL,
                   "--train", chosen.train, "--test", chosen.test, "--measure", "distance", "--measure", "gap",
                   "--measure", "noise-stability:sigmas=0.01,0.02,max_passes=2", "--device", "cpu",
                   "--out", str(tmp_path / "one")])
    assert status == 0
    columns = ["measure", "layer", "sigma", "term", "value", "stderr", "n"]
    ours = readings[readings["subject"] == chosen.name][columns].reset_index(drop=True)
    theirs = pd.read_csv(tmp_path / "one" / "readings.csv", keep_default_na=False, dtype=object)[columns]
    for column in ("sigma", "value", "stderr", "n"):
        theirs[column] = [float(v or "nan") for v in theirs[column]]
    pd.testing.assert_frame_equal(ours, theirs, check_dtype=False, check_exact=True)


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_plan_covers_the_grid(tmp_path, seeds):
    runs = demo.plan(tmp_path, seeds)
    assert len({r.name for r in runs}) == len(runs) == seeds * (3 * (len(demo.METHODS) - 1) + 2)
    assert all(r.settings.seed == dict(r.labels)["seed"] for r in runs)
    assert {r.method for r in runs if dict(r.labels)["noise"] == 0} == set(demo.METHODS) - {"consistent-loss"}
    assert len({r.end for r in runs}) == len(runs)


def test_the_network_is_smooth_and_its_builder_takes_sizes():
    model = demo.build(demo.MODEL + "?classes=3&width=4")
    assert model.head.weight.shape == (3, 8)
    assert not any(isinstance(m, torch.nn.ReLU) for m in model.modules())


def test_noise_that_is_no_rate_needs_its_specification(tmp_path):
    with pytest.raises(InputError, match="give it as kind='correlated:key=value'$"):
        demo.checkpoint(tmp_path, "plain", "plain", {}, "correlated", 0)
