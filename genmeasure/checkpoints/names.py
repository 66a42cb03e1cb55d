"""Names of a checkpoint and names of a model: tables that turn one into the other."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from genmeasure.errors import InputError

Value = TypeVar("Value")
"""What is under a name: a tensor, or an entry of a file."""
Table = tuple[tuple[str, str], ...]
"""(regular expression, what it becomes), applied to every name in this order."""
OLD_NORMS: Table = ((r"(LayerNorm|layer_norm|norm)\.gamma$", r"\1.weight"), (r"(LayerNorm|layer_norm|norm)\.beta$",
                                                                            r"\1.bias"))
"""What TensorFlow called the scale and shift of a normalisation, in checkpoints of the first BERT models."""
BUFFERS = r"(^|\.)(position_ids|token_type_ids|masked_bias|attn\.bias|inv_freq|relative_position_index|attn_mask)$"
"""Constants that older versions of transformers and timm stored; a model that lacks them computes them."""


def table(renames: Sequence[str]) -> Table:
    """`PATTERN=REPLACEMENT`, or a `.csv` file of two columns with these, each -> a table of regular expressions.

    Raises `InputError` for what is neither, and for a pattern that is no regular expression.
    """
    found: list[tuple[str, str]] = []
    for text in renames:
        if text.endswith(".csv"):
            found += _rows(Path(text))
        else:
            pattern, equals, replacement = text.partition("=")
            if not equals or not pattern:
                raise InputError(f"the renaming {text!r} came; write it as PATTERN=REPLACEMENT, or give a .csv file of "
                                 "two columns")
            found.append((pattern, replacement))
    for pattern, replacement in found:
        try:
            re.compile(pattern)
            re.sub(pattern, replacement, "")
        except (re.error, IndexError) as error:
            raise InputError(f"the renaming {pattern}={replacement} came, which is no regular expression ({error}); "
                             "see Python's re.sub") from error
    return tuple(found)


def renamed(tensors: Mapping[str, Value], renames: Table) -> dict[str, Value]:
    """`tensors` with every pattern of the table replaced; two names that become one raise `InputError`."""
    result: dict[str, Value] = {}
    for name, tensor in tensors.items():
        new = _replaced(name, renames)
        if new in result:
            raise InputError(f"the renaming gives two weights the name {new!r}, the second one was {name!r}; "
                             "make the patterns tell them apart")
        result[new] = tensor
    return result


def fitted(tensors: Mapping[str, Value], model: Collection[str], *, start: bool = False,
           ) -> tuple[dict[str, Value], list[str]]:
    """`tensors` under the names that a model has, and what was changed, one sentence each.

    Old names of normalisations; one prefix too many (`model.` of a Lightning module) or too few (`bert.` of an encoder
    that was saved without its task); constants that the model computes. start: what belongs to another task than the
    model's, as a whole module that the model lacks (the head of the pretraining), is left out. What still does not
    agree is left for `match` to report.
    """
    notes = []
    ours = set(model)
    olds = {k: _replaced(k, OLD_NORMS) for k in tensors}
    result = {olds[k] if k not in ours else k: v for k, v in tensors.items()}
    if count := sum(k not in result for k in tensors):
        notes.append(f"renamed {count} scales and shifts of normalisations from gamma and beta")
    result, note = _prefixed(result, ours)
    notes += note
    constants = [k for k in result if k not in ours and re.search(BUFFERS, k)]
    if constants:
        notes.append(f"left out {len(constants)} constants that the model computes itself ({constants[0]})")
    result = {k: v for k, v in result.items() if k not in constants}
    if start and ours & result.keys():
        modules = {k.split(".")[0] for k in ours}
        other = [k for k in result if k not in ours and k.split(".")[0] not in modules]
        if other:
            parts = ", ".join(dict.fromkeys(k.split(".")[0] for k in other))
            notes.append(f"left out {len(other)} tensors of the start's own task ({parts})")
        result = {k: v for k, v in result.items() if k not in other}
    return result, notes


def _prefixed(tensors: dict[str, Value], ours: Collection[str]) -> tuple[dict[str, Value], list[str]]:
    """With the prefix taken off or put on that makes more of the names agree, if there is one."""
    agree = sum(k in ours for k in tensors)
    off = Counter(p for k in tensors for p in _prefixes(k) if k.removeprefix(p) in ours and k not in ours)
    on = Counter(p for k in ours for p in _prefixes(k) if k.removeprefix(p) in tensors and k not in tensors)
    if off and off.most_common(1)[0][1] > agree:
        prefix = off.most_common(1)[0][0]
        return {k.removeprefix(prefix): v for k, v in tensors.items()}, [f"stripped the prefix {prefix!r}"]
    if on and on.most_common(1)[0][1] > agree:
        prefix = on.most_common(1)[0][0]
        return ({f"{prefix}{k}" if f"{prefix}{k}" in ours else k: v for k, v in tensors.items()},
                [f"put the prefix {prefix!r} before the names"])
    return tensors, []


def _prefixes(name: str) -> list[str]:
    """`a.b.c` -> `a.`, `a.b.`"""
    parts = name.split(".")
    return [".".join(parts[:i]) + "." for i in range(1, len(parts))]


def _replaced(name: str, renames: Table) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def _rows(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        raise InputError(f"there is no table of names {path}; give a .csv file of two columns, a pattern and what "
                         "it becomes")
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    wrong = next((row for row in rows if len(row) != 2 or not row[0]), None)
    if wrong is not None:
        raise InputError(f"the table of names {path} has the row {wrong}; give two columns, a pattern and what it "
                         "becomes")
    return [(pattern, replacement) for pattern, replacement in rows]
