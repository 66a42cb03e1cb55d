"""What a study will cost: exact where costs are linear, and near the truth where readings say what it was."""

from __future__ import annotations

import re

import numpy as np
import pytest
import small

import genmeasure as gm
from genmeasure.checkpoints.write import write
from genmeasure.cli import main
from genmeasure.errors import InputError
from genmeasure.plan import Machine, Pilot, extrapolated, forward_flops, pilot, pilots, table
from genmeasure.study import Request, read

EXACT = (Request("distance"), Request("gap"), Request("margin"))


def subject(examples: int = 200):
    start, end = small.pair("chain")
    return gm.subject(end, start, small.batches(examples), small.batches(20, seed=1), device="cpu")


def test_what_goes_through_the_data_and_what_is_drawn_are_told_apart():
    assert extrapolated((64, 192.0), (256, 768.0), 10_000) == (30_000, 30_000)
    draws = extrapolated((64, 850 + 1.2 * 64), (256, 850 + 1.2 * 256), 10_000)
    assert draws == pytest.approx((850 + 1.2 * 256 + 9744, 850 + 1.2 * 10_000))
    assert extrapolated((64, 500.0), (256, 400.0), 10_256) == (400, 10_400)  # fewer draws by chance
    assert extrapolated((64, 64.0), (256, 512.0), 1024) == (1280, 2048)  # never more than in proportion
    assert extrapolated((64, 64.0), (64, 64.0), 64) == (64, 64)


def test_passes_are_those_of_the_readings():
    one = subject()
    found = pilot(one, EXACT, sizes=(32, 96))
    for cost, request in zip(found.costs, EXACT, strict=True):
        low, high = (work / found.examples for work in cost.work)
        assert low == high == pytest.approx(read(subject(), request)["passes"].iloc[0])
    assert all(cost.memory > 2**20 for cost in found.costs)
    assert found.failures == ()


def test_operations_of_a_forward_pass_are_counted():
    assert forward_flops(subject()) == 2 * (36 * 8 + 8 * 6 + 6 * small.CLASSES)


def test_hours_follow_the_machine():
    found = Pilot("one", 10, 100, 1e9, (), ())
    assert found.hours(Machine(2)) == (0, 0)
    (one,) = pilots([subject(64)], EXACT[1:2])
    work, seconds = one.costs[0].work, one.costs[0].seconds
    assert one.hours(Machine(4, 1e6)) == pytest.approx([w * one.flops / 1e6 / 4 / 3600 for w in work])
    assert one.hours(Machine(2)) == pytest.approx([s / 2 / 3600 for s in seconds])
    last = table([one], Machine(4, 1e6)).splitlines()[-1]
    assert re.fullmatch(r"1 tasks, .* GiB each at the most, .* hours on 4 processes that sustain 1e\+06 operations a "
                        "second", last)


def test_a_request_that_fails_is_said_beforehand():
    start, end = small.pair("chain")
    one = gm.subject(end, start, small.batches(), device="cpu")
    found = pilot(one, (Request("gap"), Request("distance")))
    assert found.failures[0].endswith("the gap needs them, pass --test")
    assert [c.request.name for c in found.costs] == ["distance"]


@pytest.mark.parametrize("text", ["0", "x", "8xfast", "8x0"])
def test_a_machine_that_cannot_be_is_bad_input(text):
    with pytest.raises(InputError, match=r"sustains in a second, as in 64x4e14$"):
        Machine.parse(text)
    assert Machine.parse("64x4e14") == Machine(64, 4e14)


STUDY = '''
from genmeasure.study import Request
from genmeasure.subject import SubjectFiles

def SUBJECTS():
    return [SubjectFiles(f"s{{i}}", {model!r}, {start!r}, {end!r}, {data!r}, device="cpu") for i in range(5)]

REQUESTS = [Request("distance"), Request("margin")]
'''


def test_the_command_line_says_it_and_writes_nothing(tmp_path, capsys):
    start, end = small.pair("chain")
    x, y = small.images(300)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    for name, model in (("start", start), ("end", end)):
        write(tmp_path / f"{name}.safetensors", model.state_dict())
    names = {name: str(tmp_path / f"{name}.safetensors") for name in ("start", "end")}
    names["data"] = str(tmp_path / "data.npz")
    (tmp_path / "mine.py").write_text(STUDY.format(model=f"{small.FILE}:chain", **names))
    command = ["run", str(tmp_path / "mine.py"), "--out", str(tmp_path / "out"), "--plan"]
    assert main([*command, "4x1e9"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("s0 and 4 like it: 300 examples, ")
    assert [line.split()[:2] for line in said[2:4]] == [["distance", "0"], ["margin", "1"]]
    assert said[-1].startswith("10 tasks, ")
    assert not (tmp_path / "out").exists()
