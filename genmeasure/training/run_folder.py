"""The files of one run: figures, checkpoints and what is needed to go on after a kill at any point."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genmeasure.checkpoints.read import read
from genmeasure.checkpoints.write import write
from genmeasure.errors import InputError
from genmeasure.training.loggers import JsonLines

RUN, METRICS, STATE, LAST, BEST = "run.json", "metrics.jsonl", "state.safetensors", "last.safetensors", \
    "best.safetensors"
NAMES = (RUN, METRICS, STATE, LAST, BEST)
REFERENCE = "reference"


class RunFolder:
    """A folder that belongs to one run.

    run.json: what the run is (`identity`). metrics.jsonl: figures, one record per line. last.safetensors: weights after
    the last whole epoch. best.safetensors: of the best epoch so far, where an epoch is chosen by its validation
    figures. state.safetensors: everything that a run needs to go on, tensors as such and the rest as JSON in its
    metadata. Every file is written under a temporary name and renamed, so that it is whole or absent; nothing is
    deleted, and only the run's own files are replaced.
    identity: plain values that tell runs apart, in nested dicts. facts: text for the metadata of the checkpoints.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any], facts: Mapping[str, str] | None = None):
        self.path, self.identity, self.facts = Path(path), json.loads(json.dumps(identity)), dict(facts or {})
        self.metrics = JsonLines(self.path / METRICS)

    def check(self) -> None:
        """Raises `InputError` for a folder of another run."""
        file = self.path / RUN
        if file.exists():
            there = json.loads(file.read_text(encoding="utf-8"))
            if difference := _difference(there, self.identity):
                raise InputError(f"the folder {str(self.path)!r} holds another run, in which {difference}; give each "
                                 "run a folder of its own")
        elif found := [name for name in NAMES if (self.path / name).exists()]:
            raise InputError(f"the folder {str(self.path)!r} holds a {found[0]} but no {RUN} that says of which run; "
                             "give each run a folder of its own")

    def open(self) -> None:
        """Claim the folder, unless it is claimed."""
        file = self.path / RUN
        if not file.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(f".{RUN}.tmp")
            temporary.write_text(json.dumps(self.identity, indent=1) + "\n", encoding="utf-8")
            os.replace(temporary, file)

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """What `load` returns from now on."""
        write(self.path / STATE, tensors, {"state": json.dumps(facts)})

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was saved last, or None."""
        if not (self.path / STATE).exists():
            return None
        stored = read(self.path / STATE)
        return {name: stored.tensors[name] for name in stored.tensors}, json.loads(stored.metadata["state"])

    def checkpoint(self, name: str, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Weights with all that is known of how they came about, ready to be measured."""
        said = {**self.facts, **{key: value if isinstance(value, str) else json.dumps(value)
                                 for key, value in {**self.identity, **facts}.items()}}
        write(self.path / name, weights, said)

    def weights(self, name: str) -> dict[str, Tensor]:
        """Of a checkpoint written before."""
        stored = read(self.path / name)
        return {key: stored.tensors[key] for key in stored.tensors}


def _difference(there: Any, here: Any, name: str = "") -> str | None:
    """The first thing in which two nested values differ, or None."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in {**here, **there}:
            found = _difference(there.get(key), here.get(key), f"{name}.{key}" if name else key)
            if found:
                return found
        return None
    return None if there == here else f"{name} is {_short(there)} instead of {_short(here)}"


def _short(value: Any, most: int = 60) -> str:
    text = json.dumps(value)
    return text if len(text) <= most else text[:most] + "…"


def described(value: Any) -> Any:
    """Plain values that tell an algorithm's pieces apart: dataclasses by their fields, tensors by a hash, functions and
    other objects by their name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: described(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, Tensor):
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{value.dtype} {list(value.shape)} {hashlib.sha256(raw).hexdigest()[:16]}"
    if isinstance(value, Mapping):
        return {str(key): described(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(one) for one in value]
    if isinstance(value, functools.partial):
        return [described(value.func), described(value.args), described(value.keywords)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)


