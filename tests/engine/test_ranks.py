"""Several ranks are one process to rounding: whatever the batches, with fewer examples than ranks, and when one fails.
"""

from __future__ import annotations

import os
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
from several import on_ranks

import genmeasure as gm
import genmeasure.cli
from genmeasure.checkpoints.write import write
from genmeasure.data.batches import Batches
from genmeasure.engine import LocalEngine, ranks
from genmeasure.engine.ranks import FailedElsewhere, shares
from genmeasure.errors import InputError, LostRank
from genmeasure.study import Request, applicable, everything, failed, read, run

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
EACH = pytest.mark.parametrize("size", [1, 2, 5])


def numbered(examples: int, batch_size: int = 4) -> Batches:
    x = torch.arange(2.0 * examples, dtype=torch.float64).reshape(examples, 2)
    return Batches.from_arrays(x, torch.arange(examples), batch_size=batch_size)


@pytest.mark.parametrize("examples", [1, 4, 7, 41])
@pytest.mark.parametrize("streamed", [True, False], ids=["of unknown number", "of known number"])
@EACH
def test_every_example_is_one_ranks(size, examples, streamed):
    data = numbered(examples)
    held = [list(shares(iter(data) if streamed else data, rank, size)) for rank in range(size)]
    for parts in zip(*held, strict=True):  # of one batch
        assert len({p.lengths for p in parts}) == 1
        assert [len(p.part) for p in parts] == list(parts[0].lengths)
        rows = torch.cat([p.part.rows for p in parts])
        assert rows.tolist() == list(range(4 * parts[0].position, min(examples, 4 * parts[0].position + 4)))
    counts = [sum(len(p.part) for p in parts) for parts in held]
    assert max(counts) - min(counts) <= 4 + (len(data) > size)


@pytest.mark.parametrize("small_bytes", [0, 2**16], ids=["large", "small"])
@pytest.mark.parametrize("examples", [3, 23])
@EACH
def test_sums_and_rows_are_those_of_one_process(size, examples, small_bytes, monkeypatch):
    monkeypatch.setattr(ranks, "SMALL", small_bytes)
    data = numbered(examples)

    def work(engine):
        def x(batch):
            return batch.inputs[0]
        return [engine.sum(lambda b: x(b).sum(0), data),
                engine.sum(lambda b: {None: x(b).sum(), "n": x(b).T @ x(b)}, data),
                engine.batch_sums(lambda b: x(b).sum(0) * b.index, data), engine.examples(lambda b: x(b) > 5, data),
                engine.examples(lambda b: b.rows.to(torch.int8), iter(data)), engine.sum(lambda b: x(b), []),
                engine.once(os.getpid), engine.total(1.0)]
    expected = work(LocalEngine())
    for found in (every := on_ranks(size, work)):
        torch.testing.assert_close(found[:5], expected[:5], rtol=1e-14, atol=0)
        assert found[5] is None
        assert found[6] == every[0][6] != os.getpid()
        assert found[7] == size


def test_what_fails_on_one_rank_fails_on_all_and_the_next_thing_works():
    data = numbered(12)

    def work(engine):
        def wrong(batch):
            if 5 in batch.rows:
                raise InputError("example 5 came; take another")
            return batch.targets.sum()

        def lonely():
            if engine.rank == 1:
                raise ZeroDivisionError("alone")
            return engine.sum(lambda b: b.targets.sum(), data)
        found = []
        for call in (lambda: engine.sum(wrong, data), lonely):
            try:
                with engine.together():
                    call()
            except Exception as error:
                found.append((type(error).__name__, str(error)))
            found.append(engine.sum(lambda b: b.targets.sum(), data).item())
        return found
    bad = ("InputError", "example 5 came; take another")
    for rank, found in enumerate(on_ranks(3, work)):
        alone = (("ZeroDivisionError", "alone") if rank == 1 else
                 ("FailedElsewhere", "ZeroDivisionError: alone (on rank 1)"))
        assert found == [bad, 66, alone, 66]
    assert issubclass(FailedElsewhere, RuntimeError)


def test_ranks_that_part_ways_end():
    def work(engine):
        try:
            engine.total(1.0) if engine.rank else engine.sum(lambda b: b.targets.sum(), numbered(4))
        except LostRank as error:
            return str(error)
    for found in on_ranks(2, work):
        assert found.endswith(f"give every rank the same, and the same machine; {ranks.KEPT}")


def test_a_rank_that_dies_ends_the_others():
    def work(engine):
        if engine.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            engine.total(1.0)
        except LostRank as error:
            return str(error)
    found = on_ranks(3, work)
    assert found[1] is None
    assert all(text.startswith("another rank is gone") and text.endswith(ranks.KEPT) for text in (found[0], found[2]))


def readings(engine, network: str, examples: int, requests=None) -> pd.DataFrame:
    start, end = small.pair(network)
    key = "pixel_values" if network == "keyword" else None
    one = gm.subject(end, start, small.batches(examples, batch_size=4, key=key), small.batches(7, seed=1, key=key),
                     device="cpu", dtype="float64", engine=engine)
    frames = []
    for request in requests or applicable(one, everything()):
        try:
            with engine.together():
                frames.append(read(one, request))
        except InputError as error:
            frames.append(failed(one, request, error, ""))
    return pd.concat(frames, ignore_index=True)


def compare(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    columns = [c for c in expected if c not in ("value", "stderr", "seconds", "passes")]
    pd.testing.assert_frame_equal(found[columns], expected[columns])
    np.testing.assert_allclose(found["value"], expected["value"], rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(found["stderr"], expected["stderr"], rtol=1e-8, atol=1e-14)
    np.testing.assert_allclose(found["passes"], expected["passes"], rtol=1e-10)


SOME = (Request("gap"), Request("hessian-trace", {"rtol": 0.2, "layer_rtol": 0.5}), Request("hessian-top"),
        Request("hessian-trace", {"route": "hutchinson", "max_passes": 2}), Request("hessian-distance"),
        Request("noise-stability", {"sigmas": (0.01, 0.1), "max_passes": 2}))


@pytest.mark.parametrize(("size", "examples"), [(2, 6), (5, 3)])
def test_readings_are_those_of_one_process(size, examples):
    expected = readings(LocalEngine(), "chain", examples, SOME)
    for found in on_ranks(size, lambda engine: readings(engine, "chain", examples, SOME)):
        compare(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["residual", "smooth", "keyword", "chain"])
@pytest.mark.parametrize("examples", [3, 13])
def test_every_member_reads_the_same_on_several_ranks(network, examples):
    expected = readings(LocalEngine(), network, examples)
    for size in (1, 2, 5):
        for found in on_ranks(size, lambda engine: readings(engine, network, examples)):
            compare(found, expected)


def test_one_rank_writes_and_all_return_the_readings(tmp_path):
    def work(engine):
        start, end = small.pair("chain")
        one = gm.subject(end, start, small.batches(6), name="one", device="cpu", dtype="float64", engine=engine)
        found = run([one], (Request("norm"), Request("gap")), tmp_path, engine=engine)
        return found, sorted(p.name for p in tmp_path.iterdir())
    (first, there), (second, _) = on_ranks(2, work)
    pd.testing.assert_frame_equal(first, second)
    assert first["error"].unique().tolist() == ["", "the subject 'one' has no test data; the gap needs them, "
                                                    "pass --test"][:first["error"].nunique()]
    assert there == ["parts", "provenance.json", "readings.csv"]
    assert len(list((tmp_path / "parts").iterdir())) == 1


@pytest.fixture
def audit(tmp_path) -> list[str]:
    start, end = small.pair("residual")
    x, y = small.images(200)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    for name, model in (("start", start), ("end", end)):
        write(tmp_path / f"{name}.safetensors", model.state_dict())
    return ["audit", "--start", str(tmp_path / "start.safetensors"), "--end", str(tmp_path / "end.safetensors"),
            "--model", f"{small.FILE}:residual", "--train", str(tmp_path / "data.npz"), "--dtype", "float64",
            "--device", "cpu", "--batch-size", "16"]


def torchrun(ranks_: int, *command: str) -> subprocess.Popen:
    """`--` because torchrun, before it comes to the command, takes --start for its own --start-method."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks_)]
    return subprocess.Popen([*start, "-m", "--", "genmeasure", *command], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def children(of: int) -> list[int]:
    """Processes of ranks, in order."""
    found = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(of)], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if "genmeasure" in line]


@pytest.mark.slow
def test_torchrun_audits_as_one_process_does(audit, tmp_path):
    wanted = [f"--measure={name}" for name in ("distance", "hessian-trace", "noise-stability:max_passes=2")]
    assert gm.cli.main([*audit, *wanted, "--out", str(tmp_path / "one")]) == 0
    ran = torchrun(2, *audit, *wanted, "--out", str(tmp_path / "two"))
    said, err = ran.communicate(timeout=300)
    assert ran.returncode == 0, err
    assert said.count("report: ") == 1
    one, two = (pd.read_csv(tmp_path / name / "readings.csv", keep_default_na=False) for name in ("one", "two"))
    compare(*(f.assign(value=f["value"].astype(float), stderr=f["stderr"].astype(float)) for f in (two, one)))
    bad = torchrun(2, *audit[:-1], "0", "--out", str(tmp_path / "bad"))
    assert bad.communicate(timeout=300)[1].count("genmeasure: ") == 1


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hanging"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_lost_ends_the_run_within_a_minute(audit, tmp_path, how, victim):
    out = tmp_path / "out"
    endless = ["--measure=distance", "--measure=noise-stability:rtol=0.0,max_passes=1000000000"]
    ran = torchrun(2, *audit, *endless, "--out", str(out))
    until = time.monotonic() + 240
    while not list((out / "parts").glob("*.csv")):
        assert ran.poll() is None, ran.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(2.0)
    os.kill(children(ran.pid)[victim], how)
    began = time.monotonic()
    _, err = ran.communicate(timeout=120)
    assert time.monotonic() - began < 60
    assert ran.returncode != 0
    assert ranks.KEPT in err, err
    assert list((out / "parts").glob("*.csv"))
    again = torchrun(2, *audit, "--measure=distance", "--out", str(out))
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
