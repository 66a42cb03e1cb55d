"""The embedded handwritten digits."""

import re

import pytest
import torch
from sklearn.datasets import load_digits

from genmeasure.data.digits import digits
from genmeasure.errors import InputError


@pytest.mark.parametrize("classes", [(5, 6, 7, 8, 9), (0, 1, 2, 3, 4), (3, 1)])
def test_splits_partition_the_classes(classes):
    splits = digits(classes)
    assert list(splits) == ["train", "validation", "test"]
    every = torch.cat([s["index"] for s in splits.values()])
    target = torch.from_numpy(load_digits().target)
    wanted = torch.isin(target, torch.tensor(classes)).nonzero().squeeze(1)
    assert torch.equal(every.sort().values, wanted)


def test_rows_labels_and_scale():
    images, target = load_digits(return_X_y=True)
    for split in digits((9, 2)).values():
        assert (split["x"].dtype, split["y"].dtype, split["index"].dtype) == (torch.float32, torch.int64, torch.int64)
        assert split["x"].shape == (len(split["y"]), 1, 8, 8)
        assert torch.equal(split["x"].flatten(1) * 16, torch.from_numpy(images)[split["index"]].float())
        assert torch.equal(torch.tensor([9, 2])[split["y"]], torch.from_numpy(target)[split["index"]])
        assert split["x"].min() == 0
        assert split["x"].max() == 1


def test_fractions_in_every_class():
    splits = digits()
    counts = torch.stack([s["y"].bincount(minlength=5) for s in splits.values()]).double()
    fractions = counts / counts.sum(0)
    assert torch.allclose(fractions, torch.tensor([[0.5], [0.17], [0.33]], dtype=torch.float64), rtol=0, atol=0.006)
    assert [len(s["y"]) for s in splits.values()] == [448, 153, 295]


def test_first_batch_is_mixed():
    assert len(digits()["train"]["y"][:64].unique()) == 5


def test_seed_decides_and_global_generator_is_untouched():
    before = torch.get_rng_state()
    a, b, c = digits()["train"]["index"], digits()["train"]["index"], digits(seed=1)["train"]["index"]
    assert torch.equal(a, b)
    assert not torch.equal(a.sort().values, c.sort().values)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_duplicates():
    x = torch.cat([s["x"] for classes in ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9)) for s in digits(classes).values()])
    assert len(x.flatten(1).unique(dim=0)) == len(x) == 1797


@pytest.mark.parametrize("classes", [(), (3,), 3, (3, 3), (9, 10), (-1, 2), ("a", "b")])
def test_classes_that_do_not_exist(classes):
    with pytest.raises(InputError, match=re.escape("give at least two different digits from 0 to 9") + "$"):
        digits(classes)
