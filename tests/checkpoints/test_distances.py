"""Distances of weights without a model."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from genmeasure.checkpoints import distances as module
from genmeasure.checkpoints.distances import distances
from genmeasure.checkpoints.read import open_stored
from genmeasure.checkpoints.write import write
from genmeasure.cli import main
from genmeasure.errors import InputError


def weights(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (7, 3), "a.bias": (7,), "conv.weight": (4, 2, 3, 3), "scale": (),
              "head.weight": (2 + seed, 7)}
    return {k: torch.randn(v, generator=generator, dtype=torch.float64) for k, v in shapes.items()}


@pytest.mark.parametrize("block", [1, 10, 1 << 22])
def test_every_term_against_whole_tensors(tmp_path, monkeypatch, block):
    monkeypatch.setattr(module, "BLOCK", block)
    start, end = weights(0), weights(1)
    paths = [write(tmp_path / f"{i}.safetensors", {**some, "counter": torch.tensor(i)})
             for i, some in enumerate((start, end))]
    found, notes = distances(*map(open_stored, paths))
    moved = {k: end[k] - start[k] for k in ("a.weight", "a.bias", "conv.weight", "scale")}
    expected = {}
    for name in ("a.weight", "conv.weight"):
        length, layer = moved[name].norm().item(), name.removesuffix(".weight")
        expected |= {(layer, "frobenius"): length, (layer, "max"): moved[name].abs().max().item(),
                     (layer, "relative"): length / start[name].norm().item()}
    for name in ("a.bias", "scale"):
        expected |= {(name, "l2"): moved[name].norm().item(), (name, "max"): moved[name].abs().max().item()}
    expected["head", "frobenius-about-zero"] = end["head.weight"].norm().item()
    expected["total", "frobenius"] = (expected["a", "frobenius"] ** 2 + expected["conv", "frobenius"] ** 2) ** 0.5
    assert {k: e.value for k, e in found.items()} == pytest.approx(expected, rel=1e-12)
    assert all(e.stderr == 0 for e in found.values())
    assert notes == []


def test_a_tensor_that_is_stored_twice_counts_once(tmp_path):
    for i in range(2):
        table = torch.full((3, 4), float(i))
        torch.save({"embedding.weight": table, "head.weight": table}, tmp_path / f"{i}.bin")
    found, notes = distances(*(open_stored(tmp_path / f"{i}.bin") for i in range(2)))
    assert found["total", "frobenius"].value == pytest.approx(12**0.5)
    assert notes == ["head.weight is stored twice and counts once"]


def test_quantised_weights_are_left_out_and_named(tmp_path):
    paths = [write(tmp_path / f"{i}.safetensors", {"a.weight": torch.full((2, 2), float(i)),
                                                   "b.weight": torch.ones(2, 2, dtype=torch.int8)}) for i in range(2)]
    found, notes = distances(*map(open_stored, paths))
    assert found["total", "frobenius"].value == 2
    assert notes == ["left out 1 tensors that are no floating-point numbers (b.weight)"]


def test_checkpoints_with_nothing_in_common_and_weights_that_are_not_finite(tmp_path):
    for name, value in (("a", 1.0), ("b", 2.0), ("nan", float("nan"))):
        save_file({f"{'a' if name == 'nan' else name}.weight": torch.full((2, 2), value)},
                  tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match=r"or say what names become with --rename$"):
        distances(*(open_stored(tmp_path / f"{n}.safetensors") for n in "ab"))
    with pytest.raises(InputError, match="use checkpoints from before training diverged$"):
        distances(*(open_stored(tmp_path / f"{n}.safetensors") for n in ("a", "nan")))


def test_from_the_command_line(tmp_path, capsys):
    start, end = weights(0), weights(0)
    end = {f"model.{k}": (v + 1).to(torch.bfloat16) for k, v in end.items()}
    write(tmp_path / "start.safetensors", start)
    write(tmp_path / "end.safetensors", end)
    pair = ["--start", str(tmp_path / "start.safetensors"), "--end", str(tmp_path / "end.safetensors")]
    assert main(["audit", *pair, "--rename", r"^model\.=", "--out", str(tmp_path / "out")]) == 0
    assert "0 failed" in capsys.readouterr().out
    frame = pd.read_csv(tmp_path / "out" / "readings.csv")
    assert set(frame["measure"]) == {"distance"}
    length = (end["model.a.weight"].double() - start["a.weight"]).norm().item()
    assert frame.set_index(["layer", "term"]).loc[("a", "frobenius"), "value"] == pytest.approx(length, rel=1e-6)
    read = json.loads(frame["params"].iloc[0])["found"]["read"]
    assert read["end"] == ["widened 5 tensors from bfloat16 to float32"]


MEASURE = """
import json, re, sys
from genmeasure import engine
from genmeasure.checkpoints import distances
seen = []
def reported(items, description, total=None):
    for item in engine.progress(items, description, total):
        seen.append((description, total))
        yield item
distances.progress = reported
from genmeasure.cli import main
code = main(["audit", "--start", sys.argv[1], "--end", sys.argv[2], "--out", sys.argv[3]])
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
print(json.dumps([code, peak, seen[-1], len(seen)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the largest memory of a process is read from /proc")
def test_two_sharded_checkpoints_of_2_gb_take_less_than_1_gb_of_memory(tmp_path):
    names = [f"model.layers.{i}.{part}.weight" for i in range(12) for part in ("attention", "mlp")]
    for k, checkpoint in enumerate(("start", "end")):
        (tmp_path / checkpoint).mkdir()
        table = {}
        for shard in range(6):
            file = f"model-{shard + 1:05d}-of-00006.safetensors"
            some = {name: torch.full((8192, 5120), float(i % 7 + k), dtype=torch.bfloat16)
                    for i, name in enumerate(names) if i % 6 == shard}
            save_file(some, tmp_path / checkpoint / file)
            table |= dict.fromkeys(some, file)
        (tmp_path / checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
        assert sum(p.stat().st_size for p in (tmp_path / checkpoint).iterdir()) > 2e9
    ran = subprocess.run([sys.executable, "-c", MEASURE, *(str(tmp_path / n) for n in ("start", "end", "out"))],
                         capture_output=True, text=True, check=True)
    code, peak, last, steps = json.loads(ran.stdout.splitlines()[-1])
    assert (code, last, steps) == (0, ["distances", len(names)], len(names))
    assert peak < 1e9
    total = pd.read_csv(tmp_path / "out" / "readings.csv").set_index(["layer", "term"]).loc[("total", "frobenius")]
    assert total["value"] == pytest.approx((len(names) * 8192 * 5120) ** 0.5, rel=1e-12)
    for name in ("start", "end"):
        for file in (tmp_path / name).iterdir():
            file.unlink()
