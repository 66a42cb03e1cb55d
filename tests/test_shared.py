"""What is computed once, and what a reading costs by itself."""

import pytest

from genmeasure.shared import Shared


def test_every_reading_pays_once_for_all_that_it_needs_whatever_is_at_hand():
    shared, made = Shared(), []

    def compute(name, passes, *needs):
        def run():
            for need in needs:
                shared.remember(need.__name__, need)
            made.append(name)
            shared.spend(passes)
            return name
        run.__name__ = name
        return run
    survey = compute("survey", 1.0)
    traces, forms = compute("traces", 2.0, survey), compute("forms", 4.0, survey)

    def reading(*members):
        before = shared.passes
        shared.new_reading()
        for member in members:
            assert shared.remember(member.__name__, member) == member.__name__
        return shared.passes - before
    assert reading(traces) == 3
    assert reading(forms) == 5, "the survey is charged again"
    assert reading(traces, forms, forms, survey) == 7, "and once"
    assert reading(survey) == 1
    assert made == ["survey", "traces", "forms"]


def test_what_fails_is_paid_for_and_tried_again():
    shared = Shared()

    def fail():
        shared.spend(2.0)
        raise ValueError
    for attempt in (1, 2):
        with pytest.raises(ValueError, match="^$"):
            shared.remember("key", fail)
        assert shared.passes == 2 * attempt
    assert shared.remember("key", lambda: "found") == "found"


def test_a_quantity_that_cannot_be_had_is_charged_to_nobody():
    shared = Shared()

    def lacking():
        raise ValueError

    def without():
        try:
            return shared.remember("lacking", lacking)
        except ValueError:
            return "without it"
    assert [shared.remember("whole", without) for _ in range(2)] == ["without it"] * 2
    shared.new_reading()
    assert shared.remember("whole", without) == "without it"
