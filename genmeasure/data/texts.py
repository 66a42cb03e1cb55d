"""Texts and their labels -> token batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from genmeasure.checkpoints.build import library
from genmeasure.errors import InputError
from genmeasure.losses import IGNORED

TASKS = ("sequence-classification", "token-classification", "causal-lm")
MAX_LENGTH = 128
"""Tokens of a text that are kept unless `max_length` says otherwise."""
FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model")
"""Any of these makes a folder one that holds a tokenizer."""


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in FILES)


def get_tokenizer(folder: str | None, name: str) -> Any:
    """transformers' tokenizer in a folder on disk; one without a padding token pads with its last special token."""
    if folder is None:
        raise InputError(f"{name!r} holds texts; say which tokenizer makes tokens of them: ?tokenizer=FOLDER")
    if not Path(folder).is_dir() or not has_tokenizer(Path(folder)):
        raise InputError(f"there is no tokenizer in {folder!r} for {name!r}; give a folder that holds one of "
                         f"{', '.join(FILES)}")
    transformers = library("transformers", "text")
    try:
        found = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # each tokenizer's own
        raise InputError(f"the tokenizer in {folder!r} cannot be read ({type(error).__name__}); copy or download the "
                         "folder again") from error
    if found.pad_token_id is None:
        if found.eos_token is None:
            raise InputError(f"the tokenizer in {folder!r} has neither a padding nor an end token; set its pad_token")
        found.pad_token = found.eos_token
    return found


@dataclass(frozen=True)
class TokenBatches:
    """Batches of tokens with their masks, each padded to its longest text, in the order of the texts.

    texts: one column, or two for pairs of sentences. labels: [n, ...], or None for causal-lm, whose labels are the
    tokens themselves; for token-classification one list per text, of its words' labels, where the first token of a
    word has its label and all others none.
    """

    tokenizer: Any
    texts: tuple[list, ...]
    labels: Tensor | list[Sequence[int]] | None
    task: str
    max_length: int
    batch_size: int

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for begin in range(0, len(self.texts[0]), self.batch_size):
            end = begin + self.batch_size
            found = self.tokenizer(*(column[begin:end] for column in self.texts), truncation=True, padding="longest",
                                   max_length=self.max_length, return_tensors="pt",
                                   is_split_into_words=self.task == "token-classification")
            yield {**found, "labels": self._labels(found, begin, end)}

    def _labels(self, found: Any, begin: int, end: int) -> Tensor:
        if self.task == "causal-lm":
            return torch.where(found["attention_mask"].bool(), found["input_ids"], IGNORED)
        if self.task == "sequence-classification":
            return self.labels[begin:end]
        rows = []
        for row, labels in enumerate(self.labels[begin:end]):
            words, before = found.word_ids(row), None
            rows.append([])
            for word in words:
                rows[-1].append(IGNORED if word is None or word == before else int(labels[word]))
                before = word
        return torch.tensor(rows)


def columns(frame: pd.DataFrame, text: str | None, name: str) -> tuple[str, ...]:
    """The columns of the texts: those that are named (two with a comma between), or those whose names say so."""
    if text is not None:
        wanted = tuple(text) if isinstance(text, (tuple, list)) else tuple(str(text).split(","))
        for column in wanted:
            _known(frame, column, name)
        return wanted
    for some in (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question", "sentence"), ("#1 String",
                 "#2 String"), ("sentence",), ("text",), ("tokens",), ("content",)):
        if set(some) <= set(frame.columns):
            return some
    raise InputError(f"{name!r} has the columns {', '.join(map(str, frame.columns))}; say which one holds the text: "
                     "?text=COLUMN, or ?text=FIRST,SECOND for pairs")


def label_column(frame: pd.DataFrame, label: str | None, name: str) -> str:
    """The column of the labels: the one that is named, or whose name says so."""
    if label is not None:
        return _known(frame, str(label), name)
    found = next((c for c in ("label", "labels", "Quality", "ner_tags", "target", "class", "y") if c in frame), None)
    if found is None:
        raise InputError(f"{name!r} has the columns {', '.join(map(str, frame.columns))}; say which one holds the "
                         "label: ?label=COLUMN")
    return found


def _known(frame: pd.DataFrame, column: str, name: str) -> str:
    if column not in frame.columns:
        raise InputError(f"there is no column {column!r} in {name!r}; choose one of "
                         f"{', '.join(map(str, frame.columns))}")
    return column


def numbers(values: pd.Series, name: str) -> tuple[Tensor, list[str]]:
    """Class numbers [n] and the classes' names; whole numbers stay, other labels are numbered in sorted order."""
    as_number = pd.to_numeric(values, errors="coerce")
    if as_number.notna().all():
        if not (as_number % 1 == 0).all():
            return torch.tensor(as_number.to_numpy(dtype="float32")), []
        if as_number.min() < 0:
            raise InputError(f"the labels of {name!r} go down to {int(as_number.min())}; class numbers start at 0 "
                             "(data sets of a contest often hide the labels of their test split)")
        return torch.tensor(as_number.to_numpy(dtype="int64")), []
    classes = sorted(set(values.astype(str)))
    return torch.tensor([classes.index(v) for v in values.astype(str)]), classes


def several(frame: pd.DataFrame, label: str, separator: str | None, name: str) -> tuple[Tensor, list[str]]:
    """Several labels per example [n, labels] in 0 and 1: columns with commas between, or one that lists names."""
    if separator is not None:
        lists = frame[_known(frame, label, name)].astype(str).str.split(separator, regex=False)
        names = sorted({v for row in lists for v in row if v})
        return torch.tensor([[float(n in row) for n in names] for row in lists]), names
    names = [_known(frame, column, name) for column in label.split(",")]
    values = frame[names].apply(pd.to_numeric, errors="coerce")
    if values.isna().any(axis=None):
        raise InputError(f"the labels {label} of {name!r} are not all numbers; several labels per example are 0 or 1")
    return torch.tensor(values.to_numpy(dtype="float32")), names
