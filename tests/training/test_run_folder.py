"""A run that is broken off goes on to the same weights; a folder belongs to one run."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import small_net

from genmeasure.checkpoints.match import fingerprint
from genmeasure.checkpoints.read import read
from genmeasure.errors import InputError
from genmeasure.training.algorithm import Algorithm, get_algorithm
from genmeasure.training.loop import fine_tune
from genmeasure.training.losses.cross_entropy import CrossEntropy
from genmeasure.training.pieces import TrainLoss


class Killed(Exception):
    pass


def killing(step):
    """A logger that breaks a run off at its n-th step."""
    def logger(record):
        if record["step"] == step and "loss" in record:
            raise Killed
    return logger


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def figures(history):
    return [replace(epoch, seconds=0.0) for epoch in history]


def same(one, other):
    one, other = one.model.state_dict(), other.model.state_dict()
    return list(one) == list(other) and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture
def settings(settings):
    """Two epochs of four steps."""
    return replace(settings, batch_size=50, select="loss")


WAYS = ({"optimizer": "nesterov"}, {"optimizer": "sgd", "momentum": 0.0}, {"optimizer": "radam", "schedule": "plateau"},
        {"schedule": "cosine", "schedule_by": "step", "warm_up": 0.5}, {"precision": "bfloat16"},
        {"accumulate": 3, "clip": 0.1, "head_factor": 10.0}, {"precision": "float16"}, {"select": "last"})


@pytest.mark.parametrize(("kill", "changes"), [*((k, {}) for k in (1, 2, 3, 4, 7)), *((7, way) for way in WAYS)],
                         ids=str)
def test_resume_at_any_step_gives_the_same_bits(kill, changes, net, train, validation, settings, tmp_path):
    settings = replace(settings, **changes)
    whole = fine_tune(net, "nso", train, validation, settings=settings)
    with pytest.raises(Killed):
        fine_tune(net, "nso", train, validation, settings=settings, folder=tmp_path, save_every=2, log_every=1,
                  loggers=[killing(kill)])
    torch.manual_seed(99)
    resumed = fine_tune(net, "nso", train, validation, settings=settings, folder=tmp_path, save_every=2, log_every=1)
    assert same(whole, resumed)
    assert figures(whole.history) == figures(resumed.history)
    found = records(tmp_path)
    assert [r["step"] for r in found if "loss" in r] == list(range(1, 9))
    assert [(r["epoch"], r["step"]) for r in found if "training_loss" in r] == [(1, 4), (2, 8)]
    assert [r["validation_error"] for r in found if "training_loss" in r] == [
        e.validation_error for e in whole.history]


def test_a_complete_run_is_only_read(net, train, validation, settings, tmp_path):
    first = fine_tune(net, "sam", train, validation, settings=settings, folder=tmp_path)
    before = files(tmp_path)
    calls = []
    again = fine_tune(net, "sam", train, validation, settings=settings, folder=tmp_path, loggers=[calls.append])
    assert same(first, again)
    assert first.history == again.history
    assert calls == []
    assert files(tmp_path) == before


def test_checkpoints_say_how_they_came_about(net, train, validation, settings, tmp_path):
    result = fine_tune(net, "plain", train, validation, settings=replace(settings, epochs=4, learning_rate=0.05),
                       folder=tmp_path / "run", facts={"noise": "symmetric:rate=0.4"})
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "best.safetensors", "last.safetensors", "metrics.jsonl", "run.json", "state.safetensors"]
    best = read(tmp_path / "run" / "best.safetensors")
    assert result.checkpoint == tmp_path / "run" / "best.safetensors"
    assert all(torch.equal(best.tensors[k], v) for k, v in result.model.state_dict().items())
    assert best.metadata["epoch"] == str(result.chosen)
    assert best.metadata["start"] == fingerprint(net.state_dict())
    assert best.metadata["noise"] == "symmetric:rate=0.4"
    assert json.loads(best.metadata["settings"])["learning_rate"] == 0.05
    assert len(json.loads(best.metadata["history"])) == result.chosen
    assert read(tmp_path / "run" / "last.safetensors").metadata["epoch"] == "4"


def test_the_reference_run_has_a_folder_of_its_own(net, train, settings, tmp_path):
    seen = []

    class AfterAPlainRun(CrossEntropy):
        def prepare(self, context):
            seen.append(context.reference())
            return self
    algorithm = Algorithm(loss=AfterAPlainRun())
    settings = replace(settings, select="last")
    with pytest.raises(Killed):
        fine_tune(net, algorithm, train, settings=settings, folder=tmp_path, log_every=1, loggers=[killing(6)])
    made = files(tmp_path / "reference")
    resumed = fine_tune(net, algorithm, train, settings=settings, folder=tmp_path)
    assert files(tmp_path / "reference") == made
    plain = fine_tune(net, "plain", train, settings=settings)
    for model in seen:
        assert all(torch.equal(v, plain.model.state_dict()[k]) for k, v in model.state_dict().items())
    assert same(resumed, plain)


def test_half_a_line_of_figures_is_mended(net, train, settings, tmp_path):
    settings = replace(settings, select="last")
    with pytest.raises(Killed):
        fine_tune(net, "plain", train, settings=settings, folder=tmp_path, log_every=1, loggers=[killing(6)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "st')
    fine_tune(net, "plain", train, settings=settings, folder=tmp_path, log_every=1)
    assert [r["step"] for r in records(tmp_path)] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]


@pytest.mark.parametrize(("changes", "difference"), [
    ({"settings": {"epochs": 3}}, "settings.epochs is 2 instead of 3"),
    ({"algorithm": "sam"}, "pieces.probe.kind is \"Here\" instead of \"Uphill\""),
    ({"net": 1}, "start is "), ({"train": "validation"}, "train_data is "), ({"head": "conv2"}, "head is \"head\""),
])
def test_a_folder_of_another_run_is_refused(changes, difference, net, train, validation, settings, tmp_path):
    fine_tune(net, "plain", train, validation, settings=settings, folder=tmp_path)
    before = files(tmp_path)
    other = small_net(seed=1) if "net" in changes else net
    with pytest.raises(InputError) as caught:
        fine_tune(other, changes.get("algorithm", "plain"), validation if "train" in changes else train, validation,
                  settings=replace(settings, **changes.get("settings", {})), head=changes.get("head"), folder=tmp_path)
    assert difference in str(caught.value)
    assert str(caught.value).endswith("give each run a folder of its own")
    assert files(tmp_path) == before


def test_a_folder_with_files_of_nobody_knows_which_run_is_refused(net, train, settings, tmp_path):
    (tmp_path / "best.safetensors").write_bytes(b"mine")
    with pytest.raises(InputError, match="give each run a folder of its own$"):
        fine_tune(net, "plain", train, settings=replace(settings, select="last"), folder=tmp_path)
    assert files(tmp_path) == {"best.safetensors": b"mine"}


def test_pieces_tell_runs_apart_by_what_they_hold(net, train, settings, tmp_path):
    settings = replace(settings, select="last", epochs=1)
    fine_tune(net, get_algorithm("layer-ball", radius={"conv1": 0.5}), train, settings=settings, folder=tmp_path)
    with pytest.raises(InputError, match="constraint.radius.conv1 is 0.5 instead of 0.6"):
        fine_tune(net, get_algorithm("layer-ball", radius={"conv1": 0.6}), train, settings=settings, folder=tmp_path)


@pytest.mark.parametrize("given", [{"save_every": 0}, {"log_every": 0}])
def test_bad_intervals(given, net, train, settings):
    with pytest.raises(InputError, match="it must be at least 1 step$"):
        fine_tune(net, "plain", train, settings=replace(settings, select="last"), **given)


PROGRAM = """
import os, signal, sys
sys.path[:0] = {paths}
from conftest import digits, small_net
from genmeasure.training.loop import Settings, fine_tune
def kill(record):
    if "loss" in record and record["step"] == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
settings = Settings(epochs=2, batch_size=50, learning_rate=3e-3, select="loss", device="cpu")
fine_tune(small_net(), "sam", digits(0, 193, "digits-train"), digits(200, 300, "digits-validation"), settings=settings,
          folder={folder!r}, save_every=3, log_every=1, loggers=[kill])
"""


@pytest.mark.slow
def test_after_sigkill(train, validation, settings, tmp_path):
    """Killed twice by the operating system, in the middle of either epoch."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    for step in (4, 7):
        program = PROGRAM.format(paths=paths, folder=str(tmp_path / "run"), step=step)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
    resumed = fine_tune(small_net(), "sam", train, validation, settings=settings, folder=tmp_path / "run",
                        save_every=3, log_every=1)
    assert same(resumed, fine_tune(small_net(), "sam", train, validation, settings=settings))
    assert [r["step"] for r in records(tmp_path / "run") if "loss" in r] == list(range(1, 9))


def test_loss_that_needs_its_whole_batch_is_not_cut(net, train, settings):
    class Whole(TrainLoss):
        divisible = False

        def __call__(self, outputs, targets):
            return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")
    with pytest.raises(InputError, match="train in one process with accumulate=1$"):
        fine_tune(net, Algorithm(loss=Whole()), train, settings=replace(settings, select="last", accumulate=2))
