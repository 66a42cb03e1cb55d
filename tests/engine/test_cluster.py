"""A Ray cluster carries out a study as processes of this machine do, and outlives a process that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import small

from genmeasure.checkpoints.write import write
from genmeasure.cli import main

pytest.importorskip("ray")
HERE = Path(__file__).parent
STUDY = '''
from genmeasure.study import Request
from genmeasure.subject import SubjectFiles

def SUBJECTS():
    return [SubjectFiles(f"s{{i}}", {model!r}, "start.safetensors", f"s{{i}}.safetensors", "data.npz#train",
                         "data.npz#test", dtype="float64", device="cpu", batch_size=16) for i in range({count})]

REQUESTS = [Request("distance"), Request("gap"), Request("hessian-trace"), Request("hessian-top"),
            Request("noise-stability", {{"max_passes": 100}})]
'''


@pytest.fixture
def study(tmp_path, monkeypatch) -> Path:
    """A study of files that are named from its folder."""
    monkeypatch.chdir(tmp_path)
    (x, y), (tx, ty) = small.images(64), small.images(seed=1)
    np.savez("data.npz", x_train=x, y_train=y, x_test=tx, y_test=ty)
    for i in range(6):
        start, end = small.pair("residual", move=0.1 + 0.01 * i)
        write(Path(f"s{i}.safetensors"), end.state_dict())
    write(Path("start.safetensors"), start.state_dict())
    path = tmp_path / "mine.py"
    path.write_text(STUDY.format(model=f"{small.FILE}:residual", count=6))
    return path


def workers(of: int) -> list[psutil.Process]:
    """Processes of a cluster that carry out a task at the moment."""
    return [p for p in psutil.Process(of).children(recursive=True) if "_carry_out" in " ".join(p.cmdline())]


@pytest.mark.slow
def test_a_killed_worker_loses_only_its_task(study, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    ran = subprocess.Popen([sys.executable, str(HERE / "two_nodes.py"), str(study), "out/ray"], env=environment,
                           text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    parts, until = tmp_path / "out" / "ray" / "parts", time.monotonic() + 300
    while len(list(parts.glob("*.csv"))) < 3 or not (busy := workers(ran.pid)):
        assert ran.poll() is None, ran.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    before = {p.name: p.stat().st_mtime_ns for p in parts.glob("*.csv")}
    os.kill(busy[0].pid, signal.SIGKILL)
    _, err = ran.communicate(timeout=500)
    assert ran.returncode == 0, err
    after = {p.name: p.stat().st_mtime_ns for p in parts.glob("*.csv")}
    assert after.items() >= before.items()
    assert len(after) == 30
    assert main(["run", str(study), "--out", "out/local", "--engine", "local:1", "--device", "cpu"]) == 0
    ray, local = (pd.read_csv(f"out/{name}/readings.csv", keep_default_na=False).drop(columns="seconds")
                  for name in ("ray", "local"))
    place = ["subject", "measure", "layer", "sigma", "term"]
    assert not ray.duplicated(place).any()
    pd.testing.assert_frame_equal(ray, local, rtol=1e-12)
    again = subprocess.run([sys.executable, str(HERE / "two_nodes.py"), str(study), "out/ray"], env=environment,
                           text=True, capture_output=True, timeout=500)
    assert again.returncode == 0, again.stderr
    assert {p.name: p.stat().st_mtime_ns for p in parts.glob("*.csv")} == after


@pytest.mark.parametrize("engine", ["local:0", "local:x", "slurm"])
def test_an_engine_that_cannot_be_is_bad_input(study, engine, capfd):
    assert main(["run", str(study), "--out", "out", "--engine", engine]) == 2
    assert capfd.readouterr().err.endswith("or ray:ADDRESS\n")


@pytest.mark.slow
def test_a_task_that_fits_no_machine_is_bad_input(study, capfd):
    command = ["run", str(study), "--out", "out", "--engine", "ray", "--task-cpus", "9999"]
    assert main(command) == 2
    assert capfd.readouterr().err.endswith("ask for less, or add a machine\n")
