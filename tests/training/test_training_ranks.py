"""One model trained by two processes together, against one process."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import digits
from torch import nn

from genmeasure.checkpoints.read import read
from genmeasure.training.loop import Settings, fine_tune

SETTINGS = Settings(epochs=2, batch_size=48, learning_rate=1e-2, optimizer="sgd", select="loss", device="cpu")
WAYS = {"plain": {}, "sam": {}, "nso": {}, "plain-in-parts": {"accumulate": 3, "clip": 0.5}, "l2-sp": {},
        "sam-in-parts": {"accumulate": 2}}


def without_dropout(dropout=0.0, normalised=False):
    """Examples do not influence each other; one weight gets no gradient."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16),
                            nn.BatchNorm1d(16) if normalised else nn.LayerNorm(16), nn.Tanh(), nn.Dropout(dropout),
                            nn.Linear(16, 10))
    net.register_parameter("unused", nn.Parameter(torch.ones(2)))
    return net


def data():
    return digits(0, 193, "digits-train", torch.float32), digits(200, 300, "digits-validation")


def one_rank(folder):
    """What each process does."""
    import torch.distributed as dist

    from genmeasure.errors import InputError
    dist.init_process_group("gloo")

    def wrapped(net):
        return nn.parallel.DistributedDataParallel(net)

    def stop(record):
        if record["step"] == 3 and "loss" in record:
            raise InputError("broken off")
    train, validation = data()
    for way, changes in WAYS.items():
        fine_tune(wrapped(without_dropout()), way.split("-in-")[0], train, validation,
                  settings=replace(SETTINGS, **changes), folder=folder / way)
    random = wrapped(without_dropout(0.5, normalised=True))
    whole = fine_tune(random, "nso", train, validation, settings=SETTINGS, folder=folder / "whole")
    try:
        resumed = fine_tune(random, "nso", train, validation, settings=SETTINGS, folder=folder / "resumed",
                            save_every=2, log_every=1, loggers=[stop])
        raise AssertionError("it was not broken off")
    except InputError as error:
        if str(error) != "broken off":
            raise
    resumed = fine_tune(random, "nso", train, validation, settings=SETTINGS, folder=folder / "resumed")
    assert all(torch.equal(v, whole.model.state_dict()[k]) for k, v in resumed.model.state_dict().items())
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, {k: v.tolist() for k, v in resumed.model.state_dict().items()})
    assert every[0] == every[1]
    for algorithm, end in (("hero", "train in one process"), ("self-labeling", "with accumulate=1")):
        labeling = algorithm if algorithm == "hero" else self_labeling()
        try:
            fine_tune(wrapped(without_dropout()), labeling, train, validation, settings=SETTINGS)
            raise AssertionError(algorithm)
        except InputError as error:
            if not str(error).endswith(end):
                raise
    dist.destroy_process_group()


def self_labeling():
    from genmeasure.training.algorithm import get_algorithm
    return get_algorithm("self-labeling", reweight_from=1)


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path):
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                           str(Path(__file__)), str(tmp_path)], capture_output=True, text=True, check=False,
                          timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    train, validation = data()
    for way, changes in WAYS.items():
        expected = fine_tune(without_dropout(), way.split("-in-")[0], train, validation,
                             settings=replace(SETTINGS, **changes))
        found = read(tmp_path / way / "best.safetensors")
        assert found.metadata["epoch"] == str(expected.chosen)
        for name, tensor in expected.model.state_dict().items():
            torch.testing.assert_close(found.tensors[name], tensor, rtol=1e-5, atol=1e-5)
        moved = torch.linalg.vector_norm(found.tensors["1.weight"] - without_dropout()[1].weight.detach())
        assert moved > 0.01
        assert torch.equal(found.tensors["unused"], torch.ones(2))


if __name__ == "__main__":
    one_rank(Path(sys.argv[1]))
