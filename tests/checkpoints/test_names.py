"""From a checkpoint's names to a model's."""

import re

import pytest

from genmeasure.checkpoints.names import fitted, renamed, table
from genmeasure.errors import InputError

MODEL = ["bert.embeddings.weight", "bert.layer.0.weight", "bert.layer.0.LayerNorm.weight",
         "bert.layer.0.LayerNorm.bias", "classifier.weight"]


def named(*names):
    return {name: i for i, name in enumerate(names)}


def refused(end, function, *arguments):
    with pytest.raises(InputError, match=re.escape(end) + "$"):
        function(*arguments)


def test_patterns_apply_in_order_inline_and_from_a_file(tmp_path):
    (tmp_path / "names.csv").write_text("^layer_(\\d)\\.,body.\\1.\n\n\"b,c\",d\n")
    found = table([r"^old\.=layer_3.", str(tmp_path / "names.csv")])
    assert found == ((r"^old\.", "layer_3."), (r"^layer_(\d)\.", r"body.\1."), ("b,c", "d"))
    assert renamed(named("old.x", "layer_2.y", "b,c"), found) == {"body.3.x": 0, "body.2.y": 1, "d": 2}


def test_tables_that_are_none(tmp_path):
    refused("or give a .csv file of two columns", table, ["layer"])
    refused("see Python's re.sub", table, ["(=x"])
    refused("see Python's re.sub", table, [r"a=\3"])
    refused("a pattern and what it becomes", table, [str(tmp_path / "none.csv")])
    (tmp_path / "a.csv").write_text("one,two,three\n")
    refused("give two columns, a pattern and what it becomes", table, [str(tmp_path / "a.csv")])
    refused("make the patterns tell them apart", renamed, named("a1", "a2"), ((r"\d", ""),))


@pytest.mark.parametrize(("names", "note"), [
    (MODEL, None),
    ([f"model.{k}" for k in MODEL], "stripped the prefix 'model.'"),
    ([f"net.inner.{k}" for k in MODEL], "stripped the prefix 'net.inner.'"),
    ([k.removeprefix("bert.") for k in MODEL], "put the prefix 'bert.' before the names"),
    ([k.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta") for k in MODEL],
     "renamed 2 scales and shifts of normalisations from gamma and beta"),
    ([*MODEL, "bert.embeddings.position_ids"],
     "left out 1 constants that the model computes itself (bert.embeddings.position_ids)")])
def test_what_is_recognised(names, note):
    found, notes = fitted(named(*names), MODEL)
    assert found == named(*MODEL)
    assert notes == ([note] if note else [])


def test_only_a_start_may_bring_parts_for_another_task():
    names = named(*MODEL[:4], "cls.predictions.weight")
    assert "cls.predictions.weight" in fitted(names, MODEL)[0]
    found, notes = fitted(names, MODEL, start=True)
    assert list(found) == MODEL[:4]
    assert notes == ["left out 1 tensors of the start's own task (cls)"]
    inside = named(*MODEL, "bert.layer.1.weight")  # a layer too many is no other task
    assert fitted(inside, MODEL, start=True) == (inside, [])


def test_names_that_have_nothing_in_common_are_left_alone():
    assert fitted(named("a", "b.c"), MODEL, start=True) == (named("a", "b.c"), [])
