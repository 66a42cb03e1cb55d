"""Parts of a data set that are drawn by a seed."""

import numpy as np
import pytest
import torch

from genmeasure.data.readers import load
from genmeasure.data.selection import Selection
from genmeasure.errors import InputError

LABELS = torch.arange(60) % 6


@pytest.fixture
def file(tmp_path):
    x = np.arange(60, dtype=np.float32)[:, None]
    np.savez(tmp_path / "a.npz", x_train=x, y_train=LABELS.numpy(), x_test=x[:5] + 100, y_test=LABELS[:5].numpy())
    return str(tmp_path / "a.npz")


def content(batches):
    return torch.cat([b.inputs[0] for b in batches])[:, 0].tolist(), batches.labels.tolist()


def refused(spec, end):
    with pytest.raises(InputError) as error:
        load(spec)
    assert str(error.value).endswith(end)


def test_some_rows(file):
    found = load(f"{file}?rows=7#train")
    x, y = content(found)
    assert x == sorted(set(x))
    assert y == [int(v) % 6 for v in x]
    assert found.notes == ("7 of 60 examples drawn, seed 0",)
    assert content(load(f"{file}?rows=7#train"))[0] == x != content(load(f"{file}?rows=7&seed=1#train"))[0]
    assert load(f"{file}?rows=100#train").size == 60
    assert load(f"{file}?rows=100#train").notes == ()


def test_a_held_out_part(file):
    parts = [load(f"{file}?holdout=0.25&of=train#{part}") for part in ("train", "validation")]
    (train, _), (validation, labels) = map(content, parts)
    assert (len(train), len(validation)) == (45, 15)
    assert sorted(train + validation) == list(range(60))
    assert labels == [int(v) % 6 for v in validation]
    assert parts[1].notes == ("validation of a split with 0.25 held out, seed 0",)
    assert content(load(f"{file}?holdout=0.25&of=train&seed=1#train"))[0] != train
    refused(f"{file}?holdout=0.25&of=train#test", "choose one of #train, #validation, and name a stored split as "
                                                  "?of=SPLIT")
    refused(f"{file}?holdout=0.25#train", "choose one of #test, #train")


def test_episodes(file):
    spec = f"{file}?of=train&ways=3&shots=2&queries=4&episode="
    support, query = (load(f"{spec}7#{part}") for part in ("support", "query"))
    (x, y), (other_x, other_y) = content(support), content(query)
    assert (y, other_y) == ([0, 0, 1, 1, 2, 2], [0] * 4 + [1] * 4 + [2] * 4)
    assert not set(x) & set(other_x)
    stored = [int(v) % 6 for v in x]
    assert stored[::2] == stored[1::2]
    assert len(set(stored)) == 3
    assert [int(v) % 6 for v in other_x] == [c for c in stored[::2] for _ in range(4)]
    assert support.notes == ("support of episode 7: 3 ways, 2 shots, seed 0",)
    assert content(load(f"{spec}8#support"))[0] != x
    refused(f"{file}?of=train&ways=9#support", "as many classes: ask for less")
    refused(f"{spec}7#train", "choose one of #support, #query, and name a stored split as ?of=SPLIT")


def test_every_class_is_drawn_alike():
    """600 episodes of two out of six: the number of times that a class occurs is binomial with p = 1/3."""
    counts = torch.zeros(6)
    for episode in range(600):
        selection = Selection(ways=2, shots=1, queries=1, episode=episode)
        positions, _, _ = selection.chosen(LABELS, "support", "data")
        counts += torch.bincount(LABELS[positions], minlength=6)
    assert ((counts - 200).abs() < 4 * (600 / 3 * 2 / 3) ** 0.5).all()


@pytest.mark.parametrize(("arguments", "end"), [
    ("rows=0", "give a whole number"), ("rows=0.5", "give a whole number"), ("holdout=1.5", "between 0 and 1"),
    ("holdout=1", "between 0 and 1"), ("ways=2&holdout=0.1", "choose one of them"), ("seed=x", "give a whole number"),
    ("of=3", "give text"), ("row=3", "did you mean 'rows'?")])
def test_arguments(file, arguments, end):
    refused(f"{file}?{arguments}#train", end)


def test_episodes_need_one_class_per_example(tmp_path):
    np.savez(tmp_path / "b.npz", x=np.ones((4, 2)), y=np.ones((4, 3)))
    refused(f"{tmp_path / 'b.npz'}?ways=2#support", "episodes need one class per example")


def test_true_labels_are_drawn_along(tmp_path):
    np.savez(tmp_path / "b.npz", x=np.arange(20.0)[:, None], y=np.arange(20), clean=np.arange(20) + 30)
    found = load(f"{tmp_path / 'b.npz'}?rows=5")
    assert all((b.clean == b.targets + 30).all() for b in found)
