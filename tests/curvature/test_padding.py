"""What pads is found, and leaving it out changes no derivative."""

import pytest
import torch
from torch import nn

import genmeasure as gm
from genmeasure.curvature import padding, tangents
from genmeasure.curvature.forms import hessian_forms
from genmeasure.curvature.padding import cut, find_padding, length
from genmeasure.curvature.taps import find_taps
from genmeasure.curvature.trace import block_traces


class Reader(nn.Module):
    """One layer of attention over the words that are no padding (number 0), which it is told by a mask."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(7, 6), nn.Embedding(9, 6)
        self.query, self.key, self.value, self.out = (nn.Linear(6, 6) for _ in range(4))
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        ids, mask = x.unbind(1)
        h = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        hidden = self.hidden(mask)
        scores = self.query(h) @ self.key(h).mT
        if hidden.any():  # another way where nothing pads, as transformers take it
            scores = scores.masked_fill(hidden[:, None], -torch.inf)
        h = self.norm(h + self.out(torch.softmax(scores, -1) @ self.value(h)))
        return self.read(torch.tanh(h))

    def hidden(self, mask):
        return mask == 0

    def read(self, h):
        return self.head(h[:, 0])


class Careless(Reader):
    """Looks at padding."""

    def hidden(self, mask):
        return torch.zeros_like(mask, dtype=torch.bool)


class EveryWord(Reader):
    """Gives outputs for padding."""

    def read(self, h):
        return self.head(h).flatten(1)[:, :-3]


LENGTHS = (3, 9, 5, 9, 4, 2, 9)


def make(model=Reader, longest=9):
    draws = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, start = model(), model()
    x = torch.zeros(len(LENGTHS), 2, longest, dtype=torch.int64)
    for row, words in zip(x, LENGTHS, strict=True):
        row[0, :words], row[1, :words] = torch.randint(1, 7, (words,), generator=draws), 1
    y = torch.randint(0, 3, (len(x),), generator=draws)
    return gm.subject(net, start, [(x[:4], y[:4]), (x[4:], y[4:])], dtype="float64", device="cpu")


def test_sequences_end_where_padding_begins():
    s = make()
    first, second = s.risk.batches
    assert find_padding(s.risk).lengths(first).tolist() == list(LENGTHS[:4])
    assert find_padding(s.risk).lengths(second).tolist() == list(LENGTHS[4:])
    short = cut(s.risk, second.select(slice(2)))
    assert short.inputs[0].shape == (2, 2, 4)
    assert torch.equal(s.risk.outputs({}, short)[:, 0] != 0, torch.tensor([True, True]))


@pytest.mark.parametrize("model", [Careless, EveryWord])
def test_padding_that_counts_stays(model):
    s = make(model)
    assert find_padding(s.risk) is None
    batch = next(iter(s.risk.batches))
    assert cut(s.risk, batch) is batch
    assert length(s.risk, batch) == 1


def test_no_padding_where_no_sequence_is_shorter():
    s = make()
    full = gm.subject(s.model, s.start, [(torch.ones(3, 2, 9, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))],
                      dtype="float64", device="cpu")
    first = next(iter(full.risk.batches))
    first.inputs[0][:, 0] = torch.arange(9) % 7  # no two columns alike: the last one is not padding
    assert find_padding(full.risk) is None


def test_forms_and_traces_are_the_same_without_padding(monkeypatch):
    found = []
    for known in (True, False):
        if not known:
            monkeypatch.setattr(padding, "find_padding", lambda risk: None)
        s = make()
        taps = find_taps(s.risk)
        forms = hessian_forms(s.risk, {x.name: s.displacement(x) for x in s.layers}, taps)
        traces = block_traces(s.risk, route="split", rtol=0.5, layer_rtol=9, atol=0, max_passes=90, seed=0)
        assert traces.tangents
        found.append((forms, traces.value, traces.covariance))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-13)


def test_less_is_carried(monkeypatch):
    monkeypatch.setattr(tangents, "HELD", {"cpu": 1})
    carried = []
    look = padding.Padding.cut
    monkeypatch.setattr(padding.Padding, "cut",
                        lambda self, batch: carried.append(look(self, batch)) or carried[-1])
    s = make()
    hessian_forms(s.risk, {x.name: s.displacement(x) for x in s.layers}, find_taps(s.risk))
    assert {batch.inputs[0].shape[-1] for batch in carried} > {9}


def test_outputs_come_in_their_order(monkeypatch):
    monkeypatch.setattr(padding, "TOGETHER", 2)
    s = make()
    assert find_padding(s.risk) is not None
    for batch in s.risk.batches:
        assert torch.allclose(padding.outputs(s.risk, batch), s.risk.outputs({}, batch), rtol=1e-12)


def test_tried_out_on_a_few_from_the_shortest_to_the_longest(monkeypatch):
    monkeypatch.setattr(padding, "TRIED", 3)
    s, tried = make(), []
    outputs = s.risk.outputs
    monkeypatch.setattr(s.risk, "outputs", lambda point, batch: tried.append(batch) or outputs(point, batch))
    assert find_padding(s.risk) is not None
    assert len(tried[0]) == 3
    assert {batch.inputs[0].shape[-1] for batch in tried[1:]} == {3, 5, 9}  # of 3, 9, 5 and 9
    monkeypatch.setattr(padding, "TRIED", 2)
    assert find_padding(make(Careless).risk) is None
