"""The generalization gap."""

from __future__ import annotations

from torch import Tensor

from genmeasure.errors import InputError
from genmeasure.estimate import Estimate
from genmeasure.predictions import predictions
from genmeasure.registry import measure
from genmeasure.subject import Subject

UNITS = {"label-noise": "fraction", **{
    f"{quantity}-{where}": unit for quantity, unit in (("loss", "loss"), ("error", "fraction"))
    for where in ("train", "test", "gap", "train-clean", "gap-clean")}}


@measure("gap", index=("term",), unit=UNITS, needs=("test",), sharded={}, source="measures.md 5")
def gap(subject: Subject) -> dict[str, Estimate]:
    """Test minus training loss and 0-1 error, in evaluation mode on clean inputs.

    Training values are exact over the training set. Test values estimate the population: their standard error is that
    of a mean over the test examples, and the gap's is the same. Where an example is several predictions (its tokens or
    labels), the error is the fraction of wrong ones. Where true training labels came along, `-clean` terms take those,
    and `label-noise` is the fraction of given labels that differ from them.
    """
    if subject.test is None:
        raise InputError(f"the subject {subject.name!r} has no test data; the gap needs them, pass --test")
    train, test = predictions(subject, "train"), predictions(subject, "test")
    result: dict[str, Estimate] = {}

    def add(quantity: str, train_values: Tensor, test_values: Tensor, suffix: str = "") -> None:
        on_train = Estimate(train_values.mean().item(), 0.0, len(train_values))
        # a mean over predictions is a ratio of two means over examples, linearised; the share is 1 for one each
        on_test = Estimate.from_draws(test_values - test_values.mean() * (test.share - 1))
        result[f"{quantity}-train{suffix}"] = on_train
        result[f"{quantity}-test"] = on_test
        result[f"{quantity}-gap{suffix}"] = Estimate(on_test.value - on_train.value, on_test.stderr, on_test.n)

    for quantity in ("loss", "error"):
        for suffix, values in (("", getattr(train, quantity)), ("-clean", getattr(train, f"clean_{quantity}"))):
            if values is not None:
                add(quantity, values, getattr(test, quantity), suffix)
    if train.wrong is not None:
        result["label-noise"] = Estimate(train.wrong.mean().item(), 0.0, len(train.wrong))
    return result
