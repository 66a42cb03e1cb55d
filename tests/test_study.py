"""Subjects x requests -> readings: the columns, what is computed again, and what a failure leaves."""

from __future__ import annotations

import json
import os

import numpy as np
import pandas as pd
import pytest
import small
import torch

import genmeasure as gm
from genmeasure import study
from genmeasure.checkpoints.build import build
from genmeasure.checkpoints.write import write
from genmeasure.engine import LocalEngine
from genmeasure.errors import InputError
from genmeasure.registry import measure
from genmeasure.study import COLUMNS, Request, applicable, everything, key, run
from genmeasure.subject import SubjectFiles

CHEAP = (Request("distance"), Request("gap"), Request("neyshabur2018", {"variant": "table"}),
         Request("noise-stability", {"sigmas": (0.01, 0.02), "max_passes": 2}))
NUMBERS = ["sigma", "value", "stderr", "n"]


def subject(name: str = "one", network: str = "residual", seed: int = 0, test: bool = True, **more):
    start, end = small.pair(network, seed=seed)
    return gm.subject(end, start, small.batches(), small.batches(seed=1) if test else None, name=name, device="cpu",
                      **more)


def files(folder, name: str, seed: int, **more) -> SubjectFiles:
    start, end = small.pair("residual", seed=seed)
    (x, y), (tx, ty) = small.images(), small.images(seed=1)
    if not (folder / "data.npz").exists():
        np.savez(folder / "data.npz", x_train=x, y_train=y, x_test=tx, y_test=ty)
    write(folder / f"{name}-start.safetensors", start.state_dict())
    write(folder / f"{name}.safetensors", end.state_dict())
    return SubjectFiles(**{"name": name, "model": f"{small.FILE}:residual", "device": "cpu", "batch_size": 16,
                           "start": str(folder / f"{name}-start.safetensors"),
                           "end": str(folder / f"{name}.safetensors"), "train": f"{folder / 'data.npz'}#train",
                           "test": f"{folder / 'data.npz'}#test", "labels": (("method", name), ("seed", seed)), **more})


def parts(out) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (out / "parts").iterdir()}


@pytest.fixture
def counted(monkeypatch):
    """Which readings were computed, (subject, measure) in order."""
    calls, read = [], study.read

    def counting(subject, request, study=""):
        calls.append((subject.name, request.name))
        return read(subject, request, study)
    monkeypatch.setattr(study, "read", counting)
    return calls


def broken(monkeypatch, error: BaseException) -> None:
    """A gap that raises `error`."""
    read = study.read

    def reading(subject, request, name=""):
        if request.name == "gap":
            raise error
        return read(subject, request, name)
    monkeypatch.setattr(study, "read", reading)


def test_columns_are_exact_and_labels_follow(tmp_path):
    assert COLUMNS == ("study", "subject", "measure", "kind", "layer", "sigma", "term", "value", "stderr", "n", "unit",
                       "params", "seconds", "passes", "error")
    readings = run([subject(labels={"method": "plain", "noise": 0.2})], CHEAP, tmp_path, study="mine")
    lines = (tmp_path / "readings.csv").read_text().splitlines()
    assert lines[0] == ",".join((*COLUMNS, "method", "noise"))
    assert tuple(readings.columns) == (*COLUMNS, "method", "noise")
    assert set(readings["study"]) == {"mine"}
    assert set(readings["method"]) == {"plain"}
    assert set(readings["noise"]) == {0.2}
    assert (readings["error"] == "").all()
    assert set(readings["kind"]) == {"measure", "reproduction"}
    by = readings.set_index("measure")
    assert by.loc["gap", "sigma"].isna().all()
    assert set(by.loc["noise-stability", "sigma"]) == {0.01, 0.02}
    assert json.loads(by.loc["noise-stability", "params"].iloc[0]) == {
        "atol": 0.0, "covariance": "isotropic", "layer_sigmas": [], "max_passes": 2, "one_sided": False,
        "per_layer": False, "rtol": 0.05, "seed": 0, "sigmas": [0.01, 0.02]}
    assert by.loc["noise-stability", "passes"].iloc[0] >= 2 * 2 * 2
    assert (readings["seconds"] > 0).all()


def test_numbers_come_back_to_the_last_bit(tmp_path):
    one = subject()
    readings = run([one], everything(), tmp_path)
    direct = pd.concat([study.read(subject(), r) for r in everything()], ignore_index=True)
    file = pd.read_csv(tmp_path / "readings.csv", keep_default_na=False, dtype=object)
    for frame in (readings, file.assign(**{c: [float(v or "nan") for v in file[c]] for c in NUMBERS})):
        for column in NUMBERS:
            np.testing.assert_array_equal(frame[column].to_numpy(float), direct[column].to_numpy(float), strict=True)
    for column in ("measure", "kind", "layer", "term", "unit", "params"):
        assert readings[column].tolist() == direct[column].tolist()


def test_infinity_and_awkward_names_survive(tmp_path):
    start, end = small.pair("chain")
    labels = {"method": "None", "run": 'NA, "x"'}
    one = gm.subject(end, start, small.batches(), name="007", device="cpu", labels=labels)
    requests = (Request("neyshabur2018", {"variant": "table"}), Request("hessian-trace"))
    readings = run([one], requests, tmp_path)
    assert set(readings["subject"]) == {"007"}
    assert set(readings["method"]) == {"None"}
    assert set(readings["run"]) == {'NA, "x"'}
    assert readings.query("measure == 'hessian-trace'")["layer"].tolist() == ["1", "3", "5", "total"]
    assert readings.query("measure == 'neyshabur2018' and term == 'total'")["value"].tolist() == [float("inf")]


def test_a_second_run_computes_nothing(tmp_path, counted):
    first = run([subject()], CHEAP, tmp_path)
    assert len(counted) == len(CHEAP)
    before = parts(tmp_path)
    second = run([subject()], CHEAP, tmp_path)
    assert len(counted) == len(CHEAP)
    assert parts(tmp_path) == before
    pd.testing.assert_frame_equal(first, second)
    third = run([subject()], CHEAP[:2], tmp_path)
    assert len(counted) == len(CHEAP)
    assert set(third["measure"]) == {"distance", "gap"}


def test_what_changed_is_computed_again(tmp_path, counted):
    run([subject()], CHEAP, tmp_path)
    counted.clear()
    run([subject()], (*CHEAP[:3], Request("noise-stability", {"sigmas": (0.01,), "max_passes": 2})), tmp_path)
    assert counted == [("one", "noise-stability")]
    counted.clear()
    start, end = small.pair("residual")
    with torch.no_grad():
        end.head.bias[0] += 1e-6
    data = small.batches(), small.batches(seed=1)
    run([gm.subject(end, start, *data, name="one", device="cpu")], CHEAP, tmp_path)
    assert len(counted) == len(CHEAP)


def test_the_key_names_subject_member_parameters_and_code(monkeypatch):
    one, request = subject(), CHEAP[3]
    own = key(one, request)
    assert own == key(subject(), Request("noise-stability", {"max_passes": 2, "sigmas": [0.01, 0.02]}))
    others = [key(subject("two"), request), key(subject(labels={"a": 1}), request), key(one, CHEAP[0]),
              key(subject(seed=1), request), key(one, Request("noise-stability", {"sigmas": (0.01, 0.02)}))]
    monkeypatch.setattr(type(request.member), "source_hash", lambda self: "another formula")
    others.append(key(one, request))
    assert len({own, *others}) == 1 + len(others)


def test_a_failure_is_a_reading_and_the_others_succeed(tmp_path, counted):
    one = subject(test=False)
    for _ in range(2):  # it is tried again, and leaves no part
        readings = run([one], CHEAP, tmp_path)
        bad = readings[readings["error"] != ""]
        assert bad["measure"].tolist() == ["gap"]
        assert bad["error"].item().endswith("has no test data; the gap needs them, pass --test")
        assert bad[["value", "stderr", "n"]].isna().all(axis=None)
        assert set(readings["measure"]) == {r.name for r in CHEAP}
        assert len(parts(tmp_path)) == len(CHEAP) - 1
    assert [m for _, m in counted] == [*(r.name for r in CHEAP), "gap"]
    written = pd.read_csv(tmp_path / "readings.csv", keep_default_na=False)
    assert written.query("measure == 'gap'")["value"].tolist() == [""]


def test_any_exception_is_one_line_of_the_table_and_goes_away_when_mended(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        broken(patch, ZeroDivisionError("two\n lines, \"quoted\""))
        readings = run([subject()], CHEAP, tmp_path)
        assert readings.loc[readings["error"] != "", "error"].tolist() == ['ZeroDivisionError: two lines, "quoted"']
        broken(patch, RuntimeError())
        assert set(run([subject()], CHEAP[1:2], tmp_path / "other")["error"]) == {"RuntimeError:"}
    assert len(parts(tmp_path)) == len(CHEAP) - 1
    readings = run([subject()], CHEAP, tmp_path)
    assert (readings["error"] == "").all()
    assert pd.read_csv(tmp_path / "readings.csv", keep_default_na=False)["error"].eq("").all()


def test_when_every_reading_fails_the_table_is_still_written(tmp_path):
    readings = run([subject(test=False)], (Request("gap"),), tmp_path)
    assert tuple(readings.columns) == COLUMNS
    assert len(readings) == 1
    assert parts(tmp_path) == {}


def test_an_interrupted_write_leaves_no_part(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError("no space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda source, target: full(source, target) if "parts" in str(target)
                      else os.rename(source, target))
        readings = run([subject()], CHEAP[:1], tmp_path)
    assert readings["error"].tolist() == ["OSError: no space left on device"]
    assert parts(tmp_path) == {}

    def interrupted(source, target):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run([subject()], CHEAP[:1], tmp_path)
    assert parts(tmp_path) == {}
    assert (run([subject()], CHEAP[:1], tmp_path)["error"] == "").all()


def test_an_interruption_keeps_what_is_complete(tmp_path, monkeypatch, counted):
    with monkeypatch.context() as patch:
        broken(patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run([subject()], CHEAP, tmp_path)
    assert len(parts(tmp_path)) == 1
    assert not (tmp_path / "readings.csv").exists()
    counted.clear()
    run([subject()], CHEAP, tmp_path)
    assert [m for _, m in counted] == [r.name for r in CHEAP[1:]]


def test_names_and_requests_are_checked_first(tmp_path):
    with pytest.raises(InputError, match="two subjects are named 'one'; the names of a study's subjects must differ$"):
        run([subject(), subject(seed=1)], CHEAP, tmp_path / "out")
    for subjects, requests in (([subject()], []), ([], CHEAP)):
        with pytest.raises(InputError, match="a study needs at least one of each$"):
            run(subjects, requests, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_input_is_raised_after_the_others_are_done(tmp_path, counted):
    good = [files(tmp_path, f"good{i}", i) for i in range(2)]
    bad = [SubjectFiles("bad", good[0].model, "nowhere.pth", good[0].end, good[0].train, device="cpu"),
           files(tmp_path, "worse", 3, loss="crossentropy")]
    out = tmp_path / "out"
    end_of_sentence = r"give the path of an existing file \(and 1 more subjects could not be read\)$"
    with pytest.raises(InputError, match=f"^bad: .*{end_of_sentence}"):
        run([bad[0], good[0], bad[1], good[1]], CHEAP, out)
    assert len(counted) == len(parts(out)) == 2 * len(CHEAP)
    assert not (out / "readings.csv").exists()
    readings = run(good, CHEAP, out)
    assert len(counted) == 2 * len(CHEAP)
    assert readings["subject"].unique().tolist() == ["good0", "good1"]


def test_nothing_is_written_for_a_single_bad_subject(tmp_path):
    with pytest.raises(InputError, match="give the path of an existing file$"):
        run([files(tmp_path, "one", 0, end="nowhere.pth")], CHEAP, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_workers_give_the_readings_of_one(tmp_path):
    subjects = [files(tmp_path, f"s{i}", i) for i in range(3)]
    subjects[1] = files(tmp_path, "s1", 1, test=None)
    one, two = (run(subjects, CHEAP, tmp_path / f"out{n}", engine=LocalEngine(n)) for n in (1, 2))
    pd.testing.assert_frame_equal(one.drop(columns="seconds"), two.drop(columns="seconds"), check_exact=True)
    assert set(parts(tmp_path / "out1")) == set(parts(tmp_path / "out2"))
    assert one.loc[one["error"] != "", "subject"].tolist() == ["s1"]
    assert one.groupby("subject")["seed"].first().tolist() == [0, 1, 2]
    facts = [json.loads((tmp_path / f"out{n}" / "provenance.json").read_text()) for n in (1, 2)]
    assert facts[0]["subjects"] == facts[1]["subjects"]


def test_workers_find_the_classes_of_a_model_that_is_built_from_a_file(tmp_path):
    model = build(f"{small.FILE}:residual", seed=0)
    subjects = [gm.subject(model, model, small.batches(seed=i), name=f"s{i}", device="cpu") for i in range(2)]
    one, two = (run(subjects, CHEAP[:2], tmp_path / f"out{n}", engine=LocalEngine(n)) for n in (1, 2))
    pd.testing.assert_frame_equal(one.drop(columns="seconds"), two.drop(columns="seconds"), check_exact=True)
    assert type(model).__module__ not in (small.__name__, __name__)


def test_the_global_random_state_is_as_it_was(tmp_path):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    run([files(tmp_path, "one", 0)], CHEAP, tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("count", [1, 2])
def test_provenance_says_what_was_read_and_with_what(tmp_path, count):
    subjects = [files(tmp_path, f"s{i}", i) for i in range(count)]
    run(subjects, CHEAP, tmp_path / "out", study="mine", provenance={"command": "run", "by": "seed"})
    facts = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert (facts["study"], facts["command"], facts["by"]) == ("mine", "run", "seed")
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["versions"].keys() >= {"python", "genmeasure", "numpy", "pandas"}
    assert facts["machine"].keys() == {"system", "processor", "cores", "cuda"}
    assert [r["name"] for r in facts["requests"]] == [r.name for r in CHEAP]
    assert facts["requests"][3]["sigmas"] == [0.01, 0.02]
    assert facts["requests"][3]["rtol"] == 0.05
    assert facts["seconds"] > 0
    assert list(facts["subjects"]) == [s.name for s in subjects]
    for given in subjects:
        found = facts["subjects"][given.name]
        assert found["fingerprint"] == given.load().fingerprint
        assert (found["layers"], found["head"], found["head center"]) == (["stem", "block", "head"], "head", "start")
        assert (found["outputs"], found["training examples"], found["test examples"]) == (3, 32, 32)
        assert all(found[k] == getattr(given, k) for k in ("model", "start", "end", "train", "test"))


def test_every_variant_of_every_member_is_asked_for_once():
    found = everything()
    assert len({(r.name, json.dumps(dict(r.parameters))) for r in found}) == len(found)
    assert {r.parameters.get("variant") for r in found if r.name == "neyshabur2018"} == {"theorem", "code", "table"}
    assert {r.name for r in applicable(subject(test=False), found)} == {r.name for r in found} - {"gap", "hold-out"}
    assert applicable(subject(), found) == found


def test_a_reading_that_is_not_a_number_is_a_failure(tmp_path, monkeypatch):
    from genmeasure.estimate import Estimate
    member = measure["gap"]
    monkeypatch.setitem(measure._members, "gap", type(member)("measure", "gap", lambda s: {"a": Estimate(float("nan"))},
                                                              index=("term",)))
    readings = run([subject()], (Request("gap"),), tmp_path)
    assert readings["error"].item().endswith("check the inputs, or measure with --dtype float64")
    assert parts(tmp_path) == {}
