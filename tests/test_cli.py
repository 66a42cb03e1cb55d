"""The command line: run folders, one-line errors that leave nothing behind, exit status, interruption."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import small
import torch

import genmeasure as gm
from genmeasure import study
from genmeasure.checkpoints.read import read
from genmeasure.checkpoints.write import write
from genmeasure.cli import main, named, parser
from genmeasure.errors import InputError
from genmeasure.train_options import SETTINGS
from genmeasure.training.settings import Settings

MODEL = f"{small.FILE}:residual"
QUICK = ("--measure", "distance", "--measure", "noise-stability:sigmas=0.01,0.02,max_passes=2")
PATIENCE = 120
"""Seconds after which a process counts as stuck."""


@pytest.fixture
def folder(tmp_path):
    """Checkpoints in two formats and data on disk, and nothing else."""
    start, end = small.pair("residual")
    state = start.state_dict()
    write(tmp_path / "start.safetensors", state)
    write(tmp_path / "end.safetensors", end.state_dict())
    wrapped = {f"module.{k}": v for k, v in end.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / "end.pth")
    (x, y), (tx, ty) = small.images(), small.images(seed=1)
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=tx, y_test=ty)
    np.savez(tmp_path / "wrong-labels.npz", x=x, y=y + 1)
    np.savez(tmp_path / "empty.npz", x=x[:0], y=y[:0])
    np.savez(tmp_path / "colour.npz", x=x.repeat(1, 3, 1, 1), y=y)
    return tmp_path


def audit_arguments(folder: Path, *more: str, **given: str) -> list[str]:
    options = {"start": folder / "start.safetensors", "end": folder / "end.safetensors", "model": MODEL,
               "train": f"{folder / 'data.npz'}#train", "test": f"{folder / 'data.npz'}#test", "out": folder / "out",
               "device": "cpu", "batch-size": "16", **given}
    return ["audit", *(text for k, v in options.items() if v is not None for text in (f"--{k}", str(v))), *more]


def process(*arguments: str, **more) -> subprocess.Popen:
    """A command as from a terminal, where Ctrl-C is heard; tests that run in the background inherit that it is not."""
    return subprocess.Popen([sys.executable, "-m", "genmeasure", *arguments], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, preexec_fn=heard, **more)


def heard() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def numbers(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[["measure", "layer", "sigma", "term", "value", "stderr", "n"]].reset_index(drop=True)


def written(out: Path) -> pd.DataFrame:
    frame = pd.read_csv(out / "readings.csv", keep_default_na=False, dtype=object)
    for column in ("sigma", "value", "stderr", "n"):
        frame[column] = [float(v or "nan") for v in frame[column]]
    return frame


@pytest.mark.parametrize("end", ["end.safetensors", "end.pth"])
def test_an_audit_leaves_the_run_folder_of_the_contract(folder, end, capsys):
    assert main(audit_arguments(folder, *QUICK, "--measure", "gap", end=folder / end)) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "0 failed" in said.out
    assert f"report: {folder / 'out' / 'report.html'}" in said.out
    assert {p.name for p in (folder / "out").iterdir()} == {"readings.csv", "provenance.json", "tables", "plots",
                                                            "report.html", "parts"}
    assert any((folder / "out" / "tables").glob("*.csv"))
    assert any((folder / "out" / "plots").iterdir())
    found = written(folder / "out")
    assert tuple(found.columns) == study.COLUMNS
    assert set(found["subject"]) == {"end"}
    assert set(found["study"]) == {"audit"}
    subject = gm.subject(small.pair("residual")[1], small.pair("residual")[0], small.batches(), small.batches(seed=1),
                         device="cpu")
    ours = pd.concat([gm.measure(subject, "distance"), gm.measure(subject, "noise-stability", sigmas=(0.01, 0.02),
                                                                  max_passes=2), gm.measure(subject, "gap")])
    pd.testing.assert_frame_equal(numbers(found), numbers(ours), check_dtype=False, check_exact=True)
    facts = json.loads((folder / "out" / "provenance.json").read_text())
    assert facts["command"] == "audit"
    assert facts["arguments"]["end"] == str(folder / end)
    assert facts["subjects"]["end"]["outputs"] == 3


def test_without_measures_everything_that_applies_is_read(folder):
    assert main(audit_arguments(folder, test=None, name="mine")) == 0
    found = written(folder / "out")
    assert set(found["subject"]) == {"mine"}
    assert set(found["measure"]) == {r.name for r in study.everything()} - {"gap", "hold-out"}
    assert (found["error"] == "").all()


def test_a_seed_goes_to_every_member_that_draws(folder):
    main(audit_arguments(folder, *QUICK))
    main(audit_arguments(folder, *QUICK, "--seed", "7", out=folder / "out7"))
    zero, seven = written(folder / "out"), written(folder / "out7")
    assert {json.loads(p).get("seed") for p in seven["params"]} == {None, 7}
    drawn = (zero["stderr"] > 0).to_numpy()
    assert drawn.any()
    assert (zero["value"] != seven["value"])[drawn].all()
    pd.testing.assert_frame_equal(numbers(zero[~drawn]), numbers(seven[~drawn]))


def test_in_a_process_of_its_own(folder):
    ran = process(*audit_arguments(folder, *QUICK))
    out, err = ran.communicate(timeout=PATIENCE)
    assert (ran.returncode, err) == (0, "")
    assert out.splitlines()[-1] == f"report: {folder / 'out' / 'report.html'}"
    ran = process(*audit_arguments(folder, "--measure", "hesian-trace", out=folder / "other"))
    out, err = ran.communicate(timeout=PATIENCE)
    assert (ran.returncode, out) == (2, "")
    assert err == "genmeasure: unknown measure or bound 'hesian-trace'; did you mean 'hessian-trace'?\n"
    assert not (folder / "other").exists()


class Bomb:
    """A pickle that makes a folder when it is opened."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def truncated(folder: Path, name: str) -> Path:
    whole = (folder / name).read_bytes()
    (folder / f"cut-{name}").write_bytes(whole[:len(whole) // 2])
    return folder / f"cut-{name}"


def altered(folder: Path, change) -> Path:
    state = dict(read(folder / "end.safetensors").tensors)
    change(state)
    torch.save(state, folder / "altered.pth")
    return folder / "altered.pth"


def set_nan(state: dict) -> None:
    state["block.weight"].view(-1)[3] = float("nan")


def bomb(folder: Path) -> Path:
    (folder / "bomb.pth").write_bytes(pickle.dumps({"weights": Bomb(folder / "ran")}, protocol=2))
    torch.save({"weights": Bomb(folder / "ran")}, folder / "bomb.pt")
    return folder / "bomb.pth"


BAD = {
    "missing file": (lambda f: {"end": f / "nowhere.pth"}, "give the path of an existing file"),
    "missing start": (lambda f: {"start": f / "nowhere.pth"}, "give the path of an existing file"),
    "truncated safetensors": (lambda f: {"end": truncated(f, "end.safetensors")}, "copy or download it again"),
    "truncated pth": (lambda f: {"start": truncated(f, "end.pth")}, "copy or download it again"),
    "empty checkpoint": (lambda f: {"end": f / ((f / "none.pth").write_bytes(b"") or "none.pth")},
                         "copy or download it again"),
    "code": (lambda f: {"end": bomb(f)}, "or a .safetensors file, and read that"),
    "code in a zip": (lambda f: {"end": bomb(f).with_suffix(".pt")}, "or a .safetensors file, and read that"),
    "wrong shape": (lambda f: {"model": MODEL + "?classes=5"},
                    "or name 'head' as the head where only the head differs"),
    "key that does not match": (lambda f: {"end": altered(f, lambda s: s.update(blok=s.pop("block.bias")))},
                                "that the checkpoint was saved from"),
    "nan weights": (lambda f: {"end": altered(f, set_nan)}, "use a checkpoint from before it diverged"),
    "labels outside the classes": (lambda f: {"train": f / "wrong-labels.npz"}, "labels must be 0..2"),
    "empty data": (lambda f: {"train": f / "empty.npz"}, "at least one example is needed"),
    "inputs of another shape": (lambda f: {"train": f / "colour.npz"},
                                "give inputs of the shape and type that it was trained on"),
    "unknown split": (lambda f: {"train": f"{f / 'data.npz'}#trian"}, "choose one of #test, #train"),
    "unknown data": (lambda f: {"train": "digits-5-8"}, "did you mean 'digits-5-9'?"),
    "unknown builder": (lambda f: {"model": f"{small.FILE}:residul"}, "did you mean 'residual'?"),
    "unknown builder module": (lambda f: {"model": "no_such_package:net"},
                               "install it, or name a file as in path/to/file.py:function"),
    "unknown builder form": (lambda f: {"model": "resnet18"}, "with ?key=value&key=value for arguments"),
    "unknown loss": (lambda f: {"loss": "cross-entropie"}, "did you mean 'cross-entropy'?"),
    "bad device": (lambda f: {"device": "cuda:99"}, "choose one of auto, cpu, cuda, cuda:1, mps"),
    "no device": (lambda f: {"device": "gpu"}, "choose one of auto, cpu, cuda, cuda:1, mps"),
    "bad dtype": (lambda f: {"dtype": "float8"}, "choose one of float32, float64, tf32, bfloat16"),
    "bad batch size": (lambda f: {"batch-size": "0"}, "give at least 1"),
    "unknown head": (lambda f: {"head": "haed"}, "did you mean 'head'?"),
    "unknown measure": (lambda f: {"measure": "hesian-trace"}, "did you mean 'hessian-trace'?"),
    "unknown parameter": (lambda f: {"measure": "hessian-trace:rtoll=1"}, "did you mean 'rtol'?"),
    "parameter without value": (lambda f: {"measure": "hessian-trace:rtol"}, "write it as key=value"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_exit_2_and_no_output(folder, capsys, case):
    given, end_of_sentence = BAD[case]
    options = given(folder)
    before = {p.name for p in folder.iterdir()}
    arguments = audit_arguments(folder, *(() if "measure" in options else ("--measure", "distance")), **options)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("genmeasure: ")
    assert said.err.endswith(f"{end_of_sentence}\n")
    assert said.err.count("\n") == 1
    assert {p.name for p in folder.iterdir()} == before
    assert not (folder / "ran").exists()


def test_the_bomb_works_where_code_is_allowed(folder):
    pickle.loads(bomb(folder).read_bytes())
    assert (folder / "ran").is_dir()


def test_failed_readings_are_listed_and_exit_1(folder, capsys):
    assert main(audit_arguments(folder, "--measure", "gap", "--measure", "distance", test=None)) == 1
    said = capsys.readouterr()
    assert said.err == ("failed: end: gap: the subject 'end' has no test data; the gap needs them, pass --test\n")
    assert "1 failed" in said.out
    assert "1 reading" in (folder / "out" / "report.html").read_text()
    assert main(audit_arguments(folder, "--measure", "gap", test=None, out=folder / "only")) == 1
    assert (folder / "only" / "report.html").is_file()
    assert main(audit_arguments(folder, "--measure", "gap", "--measure", "distance")) == 0


@pytest.mark.parametrize("command", ["demo", "audit", "train", "run", "report", "list", "data"])
def test_help_for_every_command(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: genmeasure {command} ")


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["audit"], ["list", "measures"], ["data", "delete"],
                                       ["audit", "--nonsense"]])
def test_wrong_usage_exits_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: genmeasure")


def test_the_help_lists_every_command():
    text = parser().format_help()
    assert all(f"\n    {c} " in text for c in ("demo", "audit", "train", "run", "report", "list", "data"))


def test_parameters_are_literals_and_commas_make_tuples():
    assert named("gap") == ("gap", {})
    assert named("noise-stability:sigmas=0.01,0.02,one_sided=True,rtol=1e-3") == (
        "noise-stability", {"sigmas": (0.01, 0.02), "one_sided": True, "rtol": 1e-3})
    assert named("li2021:variant=theorem,loss_upper=range") == ("li2021", {"variant": "theorem", "loss_upper": "range"})
    with pytest.raises(InputError, match="write it as key=value$"):
        named("gap:quick")


def test_list_names_every_member(capsys):
    assert main(["list"]) == 0
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert rows == gm.list()[["family", "name"]].to_numpy().tolist()
    assert main(["list", "bound", "--verbose"]) == 0
    said = capsys.readouterr().out
    assert "theorem: certificate" in said
    assert "parameters variant='theorem' delta=0.05" in said
    assert "hessian-top" not in said


def test_data_list_path_and_verify(tmp_path, monkeypatch, capsys):
    import hashlib

    from genmeasure.data import manifest
    monkeypatch.setenv(manifest.FOLDER, str(tmp_path))
    monkeypatch.setattr(manifest, "folders", lambda: [tmp_path])
    assert main(["data", "list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == manifest.entries()["name"].tolist()
    name = "cifar10_test2k"
    row = manifest.entry(name)
    assert main(["data", "path", name]) == 2
    assert f"set {manifest.FOLDER} to the folder that holds it" in capsys.readouterr().err
    file = tmp_path / row["files"]
    file.parent.mkdir(parents=True)
    file.write_bytes(b"not it")
    assert main(["data", "path", name]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    assert main(["data", "verify", name]) == 2
    assert capsys.readouterr().err.endswith("get it again\n")
    entry = {**row, "bytes": "6", "sha256": hashlib.sha256(b"not it").hexdigest()}
    monkeypatch.setattr(manifest, "entry", lambda name: entry)
    assert main(["data", "verify", name]) == 0
    monkeypatch.undo()
    capsys.readouterr()
    for arguments, end_of_sentence in ((["path"], "as listed by `genmeasure data list`"),
                                       (["path", "cifar10_test2"], "did you mean 'cifar10_test2k'?")):
        assert main(["data", *arguments]) == 2
        assert capsys.readouterr().err.endswith(f"{end_of_sentence}\n")


def test_report_needs_readings_and_writes_them_up_again(folder, capsys):
    assert main(["report", str(folder)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.endswith("or make one with `genmeasure audit`, `run` or `demo`\n")
    main(audit_arguments(folder, *QUICK))
    out = folder / "out"
    first = (out / "report.html").read_text()
    (out / "report.html").unlink()
    capsys.readouterr()
    assert main(["report", str(out)]) == 0
    assert capsys.readouterr().out == f"report: {out / 'report.html'}\n"
    assert len((out / "report.html").read_text()) == pytest.approx(len(first), rel=0.01)


def train_arguments(folder: Path, *more: str, **given: str) -> list[str]:
    options = {"start": folder / "start.safetensors", "model": MODEL, "train": f"{folder / 'data.npz'}#train",
               "validation": f"{folder / 'data.npz'}#test", "out": folder / "trained" / "new.safetensors",
               "epochs": "2", "device": "cpu", **given}
    return ["train", *(text for k, v in options.items() for text in (f"--{k}", str(v))), *more]


def test_train_then_audit(folder, capsys):
    arguments = train_arguments(folder, algorithm="layer-ball:radius=0.5")
    assert main(arguments) == 0
    trained = folder / "trained" / "new.safetensors"
    assert capsys.readouterr().out.startswith(f"wrote {trained} after 2 epochs in ")
    found = read(trained)
    assert found.metadata["algorithm"] == "layer-ball:radius=0.5"
    assert json.loads(found.metadata["settings"])["epochs"] == 2
    assert len(json.loads(found.metadata["history"])) == 2
    assert main(audit_arguments(folder, "--measure", "distance", "--measure", "gap", end=trained)) == 0
    rows = written(folder / "out").set_index(["layer", "term"])["value"]
    assert 0 < rows["total", "frobenius"] < 1
    again = folder / "again.safetensors"
    assert main([*arguments, "--out", str(again)]) == 0
    assert all(torch.equal(v, found.tensors[k]) for k, v in read(again).tensors.items())


def test_train_into_a_folder_resumes_and_can_be_audited(folder, capsys):
    """With label noise, which the checkpoint tells of and the consistent loss is told of."""
    run = folder / "run"
    arguments = train_arguments(folder, out=run, algorithm="consistent-loss", noise="symmetric:rate=0.3", epochs="3",
                                select="loss", schedule="cosine")
    arguments += ["--betas", "0.8", "0.9"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"wrote {run / 'best.safetensors'} after 3 epochs in ")
    found = read(run / "best.safetensors").metadata
    assert (found["algorithm"], found["noise"], found["seed"]) == ("consistent-loss", "symmetric:rate=0.3", "0")
    assert found["train"].endswith("data.npz#train")
    assert json.loads(found["settings"])["betas"] == [0.8, 0.9]
    assert {"start", "train_data", "epoch", "history", "pieces"} <= set(found)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3
    before = {p.name: p.stat().st_mtime_ns for p in run.iterdir() if p.name != "metrics.jsonl"}
    assert main(arguments) == 0
    assert capsys.readouterr().out == said
    assert {p.name: p.stat().st_mtime_ns for p in run.iterdir() if p.name != "metrics.jsonl"} == before
    assert main(audit_arguments(folder, "--measure", "distance", end=run / "best.safetensors")) == 0
    capsys.readouterr()
    assert main([*arguments, "--seed", "1"]) == 2
    assert capsys.readouterr().err.endswith("give each run a folder of its own\n")


@pytest.mark.slow
def test_train_by_two_processes(folder, capsys):
    """On a network whose examples do not influence each other: one process finds the same, and one of two speaks."""
    start = small.chain().state_dict()
    write(folder / "chain.safetensors", start)
    common = {"start": folder / "chain.safetensors", "model": f"{small.FILE}:chain", "select": "loss"}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--",
             "genmeasure"]  # without the dashes torchrun takes --start for an abbreviation of its own options
    for out in ("two", "two.safetensors"):
        done = subprocess.run([*start, *train_arguments(folder, **common, out=folder / out)], capture_output=True,
                              text=True, timeout=PATIENCE, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("wrote") == 1
    assert main(train_arguments(folder, **common, out=folder / "one")) == 0
    one = read(folder / "one" / "best.safetensors").tensors
    for path in (folder / "two" / "best.safetensors", folder / "two.safetensors"):
        for name, tensor in read(path).tensors.items():
            torch.testing.assert_close(tensor, one[name], rtol=1e-4, atol=1e-5)


def test_a_file_of_another_command_is_not_replaced(folder, capsys):
    arguments = train_arguments(folder)
    assert main(arguments) == 0
    file = folder / "trained" / "new.safetensors"
    before = file.read_bytes()
    capsys.readouterr()
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{file} is there already, made by this command\n"
    assert main([*arguments, "--algorithm", "sam"]) == 2
    assert capsys.readouterr().err.endswith("give each run an output of its own\n")
    assert file.read_bytes() == before


def test_train_with_tensorboard_and_a_known_confusion_matrix(folder):
    np.save(folder / "confusion.npy", np.array([[0.8, 0.2, 0.0], [0.1, 0.9, 0.0], [0.0, 0.1, 0.9]]))
    run = folder / "run"
    assert main(train_arguments(folder, "--log-every", "1", out=run, log="tensorboard", algorithm="consistent-loss",
                                confusion=folder / "confusion.npy")) == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name in ("training_loss", "validation_error", "loss", "learning_rate"):
        wanted = [(r["step"], r[name]) for r in records if r.get(name) is not None]
        if name != "learning_rate":
            assert [(e.step, e.value) for e in events.Scalars(name)] == [(s, pytest.approx(v)) for s, v in wanted]
    assert main(train_arguments(folder, out=folder / "other", algorithm="consistent-loss", confusion="0.2")) == 0


def test_every_setting_has_an_option():
    settings = {f.name: f.default for f in dataclasses.fields(Settings) if f.name not in ("seed", "device")}
    assert {name: default for name, (_, default, _) in SETTINGS.items()} == settings


@pytest.mark.parametrize(("given", "end_of_sentence"), [
    ({"out": "model.pth"}, "give a folder, or a file that ends in .safetensors"),
    ({"out": "run", "algorithm": "consistent-loss"}, "[classes, classes] with the true label in rows"),
    ({"log": "tensorbord", "out": "run"}, "did you mean 'tensorboard'?"),
    ({"log": "tensorboard"}, "give a folder, in which figures have a place"),
    ({"precision": "half"}, "known are: bfloat16, float16, float32"),
    ({"save-every": "0", "out": "run"}, "it must be at least 1 step"),
    ({"algorithm": "plian"}, "did you mean 'plain'?"),
    ({"algorithm": "sam:rhoo=1"}, "did you mean 'rho'?"),
    ({"optimizer": "adma"}, "did you mean 'adam'?"),
    ({"epochs": "0"}, "it must be at least 1"),
    ({"learning-rate": "1e9"}, "use a smaller learning rate"),
    ({"train": "nowhere.npz"}, "give the path of an existing .npz"),
    ({"noise": "0.2"}, "or --confusion 0.2 for noise that is in them already"),
    ({"noise": "symetric:rate=0.2"}, "did you mean 'symmetric'?"),
    ({"noise": "symmetric:rate=2"}, "give a fraction between 0 and 1"),
    ({"noise": "symmetric:rate=0.2", "confusion": "0.2"}, "so leave --confusion out"),
    ({"confusion": "2", "algorithm": "consistent-loss"}, "or a .npy or .csv file"),
    ({"confusion": "nowhere.npy"}, "give the path of a file"),
    ({"algorithm": "l2-sp:weight=abc"}, "give a number"),
])
def test_bad_training_is_one_line_exit_2_and_no_output(folder, capsys, monkeypatch, given, end_of_sentence):
    monkeypatch.chdir(folder)
    before = {p.name for p in folder.iterdir()}
    arguments = train_arguments(folder, **given)
    if given.get("learning-rate"):
        arguments += ["--optimizer", "sgd", "--epochs", "20"]
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.endswith(f"{end_of_sentence}\n")
    assert said.err.count("\n") == 1
    assert {p.name for p in folder.iterdir()} == before


STUDY = '''
from pathlib import Path
from genmeasure.study import Request
from genmeasure.subject import SubjectFiles
HERE = Path(__file__).parent
BY = "method"

def SUBJECTS():
    data = str(HERE / "data.npz")
    return [SubjectFiles(f"s{{i}}", "{model}", str(HERE / "start.safetensors"), str(HERE / "end.safetensors"),
                         f"{{data}}#train", f"{{data}}#test", device="cpu", batch_size=16 + i,
                         labels=(("method", f"m{{i % 2}}"),)) for i in range({count})]

REQUESTS = {requests}
'''


def write_study(folder: Path, count: int, requests: str) -> Path:
    (folder / "mine.py").write_text(STUDY.format(model=MODEL, count=count, requests=requests))
    return folder / "mine.py"


def test_a_study_file_run_twice(folder, capsys):
    path = write_study(folder, 4, '(Request("gap"), Request("distance"), Request("hessian-trace"))')
    command = ["run", str(path), "--out", str(folder / "out"), "--engine", "local:1"]
    assert main(command) == 0
    out = folder / "out"
    parts = {p.name: p.stat().st_mtime_ns for p in (out / "parts").iterdir()}
    first = written(out)
    assert set(first["study"]) == {"mine"}
    assert first["subject"].unique().tolist() == ["s0", "s1", "s2", "s3"]
    assert (out / "correlations.csv").is_file()
    assert (out / "report.html").is_file()
    assert main(command) == 0
    assert {p.name: p.stat().st_mtime_ns for p in (out / "parts").iterdir()} == parts
    pd.testing.assert_frame_equal(written(out), first)
    assert json.loads((out / "provenance.json").read_text())["by"] == "method"


@pytest.mark.parametrize(("text", "end_of_sentence"), [
    (None, "give the path of a Python file"),
    ("SUBJECTS = list", "does not define REQUESTS; a study defines SUBJECTS() and REQUESTS"),
    ("SUBJECTS, REQUESTS = list, ()", "a study needs at least one of each"),
    ("from genmeasure.study import Request\nSUBJECTS, REQUESTS = list, (Request('gapp'),)", "did you mean 'gap'?"),
    ("import", "correct the study file"),
    ("1 / 0", "correct the study file"),
    ("from genmeasure.study import Request\nREQUESTS = [Request('gap')]\ndef SUBJECTS(): return 1 / 0",
     "correct the study file"),
])
def test_a_bad_study_is_one_line_exit_2_and_no_output(tmp_path, capsys, text, end_of_sentence):
    if text is not None:
        (tmp_path / "bad.py").write_text(text)
    assert main(["run", str(tmp_path / "bad.py"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.endswith(f"{end_of_sentence}\n")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def wait_for(condition, ran: subprocess.Popen) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert ran.poll() is None, ran.communicate()
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.02)


@pytest.mark.parametrize("everyone", [True, False], ids=["as from a terminal", "the main process only"])
def test_interrupted_it_keeps_what_is_complete_and_goes_on(folder, everyone):
    """A terminal sends Ctrl-C to every process of the group."""
    endless = 'Request("noise-stability", {"rtol": 0.0, "max_passes": 10**9})'
    path = write_study(folder, 2, f'(Request("distance"), Request("norm"), {endless})')
    out = folder / "out"
    command = ["run", str(path), "--out", str(out), "--engine", "local:2"]
    ran = process(*command, start_new_session=True)
    try:
        wait_for(lambda: list((out / "parts").glob("*.csv")), ran)
        (os.killpg if everyone else os.kill)(ran.pid, signal.SIGINT)
        said, err = ran.communicate(timeout=PATIENCE)
    finally:
        if ran.poll() is None:
            os.killpg(ran.pid, signal.SIGKILL)
            ran.communicate()
    assert ran.returncode == 130, err
    assert err == "interrupted; what is complete is kept, and the same command goes on from there\n"
    assert said == ""
    assert not (out / "readings.csv").exists()
    kept = {p.name: p.stat().st_mtime_ns for p in (out / "parts").glob("*.csv")}
    assert kept
    for name in kept:
        assert tuple(pd.read_csv(out / "parts" / name).columns[:len(study.COLUMNS)]) == study.COLUMNS
    write_study(folder, 2, '(Request("distance"), Request("norm"))')
    assert main([*command[:-1], "local:1"]) == 0
    assert set(written(out)["measure"]) == {"distance", "norm"}
    now = {p.name: p.stat().st_mtime_ns for p in (out / "parts").glob("*.csv")}
    assert len(now) == 4
    assert now.items() >= kept.items()


def test_a_second_run_with_other_measures_leaves_nothing_of_the_first(folder):
    out = folder / "out"
    assert main(audit_arguments(folder, "--measure", "noise-stability:sigmas=0.1,max_passes=20")) == 0
    assert (out / "plots" / "hessian-against-noise.png").exists()
    assert main(audit_arguments(folder, "--measure", "gap", "--measure", "gap")) == 0
    assert not list((out / "plots").iterdir())
    assert "Noise stability" not in (out / "report.html").read_text(encoding="utf-8")
    assert set(written(out)["measure"]) == {"gap"}


def test_an_output_that_is_a_file_is_one_line_and_exit_2(folder, capsys):
    (folder / "taken").write_text("mine")
    assert main(audit_arguments(folder, "--measure", "gap", out=folder / "taken")) == 2
    assert capsys.readouterr().err.endswith("give a path that can be read or written\n")
    assert (folder / "taken").read_text() == "mine"


def test_a_broken_provenance_is_one_line_and_exit_2(folder, capsys):
    assert main(audit_arguments(folder, "--measure", "gap")) == 0
    (folder / "out" / "provenance.json").write_text("{")
    assert main(["report", str(folder / "out")]) == 2
    assert capsys.readouterr().err.endswith("delete it, or run the study again\n")


@pytest.mark.parametrize(("text", "end_of_sentence"), [
    ("hessian-trace:rtol=abc", "give a number"), ("hessian-top:per_layer=3", "give True or False"),
    ("hessian-distance:steps=-1", "give a whole number, not negative"),
    ("noise-stability:sigmas=a", "give numbers with commas between")])
def test_a_parameter_of_another_kind_is_one_line_and_exit_2(folder, capsys, text, end_of_sentence):
    assert main(audit_arguments(folder, "--measure", text)) == 2
    assert capsys.readouterr().err.endswith(f"{end_of_sentence}\n")
    assert not (folder / "out").exists()


def test_a_regression_is_audited_from_arrays(folder):
    (x, _), (tx, _) = small.images(), small.images(seed=1)
    targets = np.zeros((len(x), 3), dtype=np.float32)
    np.savez(folder / "regression.npz", x_train=x, y_train=targets, x_test=tx, y_test=targets[:len(tx)])
    data = f"{folder / 'regression.npz'}"
    arguments = audit_arguments(folder, "--loss", "squared", train=f"{data}#train", test=f"{data}#test")
    assert main([*arguments, "--measure", "gap", "--measure", "hessian-trace"]) == 0
    found = written(folder / "out")
    assert not found["term"].astype(str).str.startswith("error").any()
    assert found.loc[found["layer"] == "total", "value"].item() > 0
