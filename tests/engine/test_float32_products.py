"""Readings are made with exact products of float32 numbers, and what the user set is there again afterwards."""

from __future__ import annotations

from typing import ClassVar

import pytest
import small
import torch
from torch import nn

import genmeasure as gm
from genmeasure.engine import float32_products

PLACES = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)


class Listening(nn.Module):
    """Notes what precision is set while it runs."""

    heard: ClassVar[set[str]] = set()

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(36, small.CLASSES)

    def forward(self, x):
        self.heard.update(place.fp32_precision for place in PLACES)
        return self.layer(x.flatten(1))


@pytest.fixture(params=["highest", "high"])
def chosen(request):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def as_set() -> tuple:
    return (torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32, *(place.fp32_precision for place in PLACES))


def test_readings_are_made_in_float32_products(chosen):
    before, model = as_set(), Listening()
    subject = gm.subject(model, model, small.batches(), device="cpu")
    Listening.heard.clear()
    gm.measure(subject, "hessian-trace", max_passes=1)
    assert Listening.heard == {"ieee"}
    assert as_set() == before


def test_an_error_leaves_what_was_set(chosen):
    before = as_set()
    with pytest.raises(KeyError), float32_products():
        raise KeyError
    assert as_set() == before
