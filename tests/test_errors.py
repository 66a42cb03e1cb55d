"""Unknown names: the sentence ends with what to do."""

from __future__ import annotations

import pytest

from genmeasure.errors import MANY, InputError, unknown


def test_the_nearest_name_is_suggested():
    assert str(unknown("measure", "hesian-trace", ["gap", "hessian-trace"])) == \
        "unknown measure 'hesian-trace'; did you mean 'hessian-trace'?"


def test_without_a_near_name_the_known_ones_are_listed_in_order():
    assert str(unknown("loss", "zzz", ["squared", "absolute"])) == "unknown loss 'zzz'; known are: absolute, squared"


def test_a_long_list_is_cut():
    names = [f"name-{i:03d}" for i in range(MANY + 5)]
    message = str(unknown("model", "zzz", names))
    assert message.endswith(f"{names[MANY - 1]} and 5 more")


def test_any_iterable_of_names_will_do():
    assert str(unknown("x", "zzz", (c for c in "ba"))).endswith("known are: a, b")


def test_an_input_error_is_a_value_error():
    with pytest.raises(ValueError, match="known are: a$"):
        raise unknown("x", "zzz", {"a": 1})
    assert issubclass(InputError, ValueError)
