"""Batches in a fixed order."""

import re
from collections import UserDict

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from genmeasure.data.batches import Batch, Batches
from genmeasure.errors import InputError

X = torch.arange(14.0).reshape(7, 2)
Y = torch.tensor([0, 1, 2, 0, 1, 2, 0])


def ends(sentence):
    return re.escape(sentence) + "$"


def joined(batches):
    return torch.cat([b.inputs[0] for b in batches]), torch.cat([b.targets for b in batches])


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_ragged_last_batch(size):
    batches = Batches.from_arrays(X, Y, batch_size=size)
    assert [len(b) for b in batches] == [min(size, 7 - i) for i in range(0, 7, size)]
    assert [b.index for b in batches] == list(range(len(batches)))
    assert batches.size == 7
    assert torch.equal(joined(batches)[0], X)
    assert torch.equal(joined(batches)[1], Y)
    assert torch.equal(batches.labels, Y)


def test_numpy_arrays_and_clean_labels():
    batches = Batches.from_arrays(X.numpy(), Y.numpy(), Y.flip(0).numpy(), batch_size=3)
    assert torch.equal(torch.cat([b.clean for b in batches]), Y.flip(0))


@pytest.mark.parametrize("mapping", [dict, UserDict])  # transformers' BatchEncoding is a UserDict
@pytest.mark.parametrize("key", ["labels", "label", "targets", "target", "y"])
def test_mappings(mapping, key):
    source = [mapping({"input_ids": X[:4].long(), "nested": {"mask": X[:4]}, key: Y[:4]}),
              mapping({"input_ids": X[4:].long(), "nested": {"mask": X[4:]}, key: Y[4:]})]
    batches = Batches(source)
    first = next(iter(batches))
    assert sorted(first.inputs) == ["input_ids", "nested"]
    assert torch.equal(batches.labels, Y)
    assert key in source[0]
    assert torch.equal(first.select(slice(1, 3)).inputs["nested"]["mask"], X[1:3])
    moved = first.to("cpu", torch.float64)
    assert moved.inputs["nested"]["mask"].dtype is torch.float64
    assert moved.inputs["input_ids"].dtype is torch.int64


def test_several_positional_inputs():
    batch = Batch.of(((X, X + 1), Y), index=4)
    assert len(batch.inputs) == 2
    assert batch.index == 4
    assert torch.equal(batch.select(torch.tensor([6, 0])).inputs[1], X[[6, 0]] + 1)


def test_one_shot_iterator_is_kept():
    batches = Batches((X[i:i + 3], Y[i:i + 3]) for i in range(0, 7, 3))
    for _ in range(2):
        assert torch.equal(joined(batches)[0], X)
    assert (len(batches), batches.size) == (3, 7)


def test_shuffling_loader_is_refused():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        loader = DataLoader(TensorDataset(X, Y), batch_size=7, shuffle=True)
        with pytest.raises(InputError, match=ends("measure on a loader with shuffle=False and without augmentation")):
            Batches(loader)
        assert Batches(DataLoader(TensorDataset(X, Y), batch_size=3)).size == 7


@pytest.mark.parametrize("source", [[], iter([]), [(X[:0], Y[:0])]])
def test_empty_is_refused(source):
    with pytest.raises(InputError, match="'mine' is empty; " + ends("at least one example is needed")):
        Batches(source, "mine")


def test_unequal_lengths():
    with pytest.raises(InputError, match="tensors hold 6 and 7 examples; .*" + ends("one label for each input")):
        Batches.from_arrays(X, Y[:6])


@pytest.mark.parametrize(("batch", "end"), [
    ({"input_ids": X}, "one of labels, label, targets, target, y must hold the labels"),
    ((X,), "(inputs, labels, clean labels) or a mapping with the key 'labels'"),
    (X, "(inputs, labels, clean labels) or a mapping with the key 'labels'"),
])
def test_unknown_batch(batch, end):
    with pytest.raises(InputError, match=ends(end)):
        Batches([batch])


def test_fingerprint_follows_content_and_order():
    same = Batches.from_arrays(X, Y, batch_size=3).fingerprint
    assert same == Batches.from_arrays(X.numpy(), Y.numpy(), batch_size=3, name="other").fingerprint
    others = [Batches.from_arrays(X.flip(0), Y, batch_size=3), Batches.from_arrays(X, Y.flip(0) * 2, batch_size=3),
              Batches.from_arrays(X.double(), Y, batch_size=3),
              Batches.from_arrays(X.reshape(7, 1, 2), Y, batch_size=3),
              Batches.from_arrays(np.nextafter(X.numpy(), np.float32(np.inf)), Y, batch_size=3),
              Batches.from_arrays(X, Y, Y, batch_size=3)]
    assert len({same, *(b.fingerprint for b in others)}) == 7


def test_to_leaves_integers_and_moves_floats():
    batch = Batch.of((X, Y, Y)).to("cpu", torch.float64)
    assert (batch.inputs[0].dtype, batch.targets.dtype, batch.clean.dtype) == (torch.float64, torch.int64, torch.int64)
