"""Read a checkpoint, in whatever format, into named tensors, without ever running code that it carries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from genmeasure.checkpoints.formats import (
    adapter,
    distributed,
    folder,
    google_vit,
    pickle_file,
    safetensors_file,
    shards,
)
from genmeasure.checkpoints.formats.adapter import Adapter
from genmeasure.checkpoints.formats.pickle_file import SAVE_INSTEAD
from genmeasure.checkpoints.stored import Stored
from genmeasure.errors import InputError

PICKLED = pickle_file.EXTENSIONS
READERS = {".safetensors": safetensors_file.read, ".npz": google_vit.read} | dict.fromkeys(PICKLED, pickle_file.read)
"""Extension -> what reads a file that ends in it."""
KNOWN = tuple(READERS)


@dataclass(frozen=True)
class Checkpoint:
    """Weights by name.

    tensors: on the CPU, floating point in float32 or wider; integer counters as stored. path: the file or folder.
    format: `safetensors`, `pickle`, `distributed` or `google-vit`. metadata: the text that a safetensors file carries.
    notes: what reading changed (wrapper keys opened, prefixes stripped, dtypes widened), one sentence each.
    """

    tensors: dict[str, Tensor]
    path: str
    format: str
    metadata: dict[str, str]
    notes: tuple[str, ...]


def read(path: str | Path) -> Checkpoint:
    """The checkpoint in a file or folder, all of it in memory; see `open_stored` for what can be read.

    Raises `InputError` as `open_stored` does, for an adapter, which needs its base, and for weights that are not all
    finite.
    """
    stored = open_stored(path)
    tensors = {name: entry.load().clone() for name, entry in stored.entries.items()}
    _check_finite(tensors, path)
    return Checkpoint(tensors, str(path), stored.format, stored.metadata, stored.notes)


def open_stored(path: str | Path) -> Stored:
    """The tensors in a file or folder by their bare names, each read when it is asked for.

    A file: `.safetensors`; `.pt`, `.pth`, `.th`, `.bin`, `.ckpt` with tensors only; Google's vision transformers as
    `.npz`; `*.index.json` of shards. A folder: of transformers, of torch.distributed.checkpoint, or with one of these.

    Raises `InputError` for what is missing, of another kind, damaged, without tensors, or that would run code (it is
    not run).
    """
    path = Path(path)
    if is_adapter(path):
        raise InputError(f"{path} is an adapter, which only says how a base changes; give it as the end, and its base "
                         "as the start")
    stored = _stored(path)
    if not stored.entries:
        raise InputError(f"{path} holds no tensors; {SAVE_INSTEAD}")
    return _cleaned(stored)


def is_adapter(path: str | Path) -> bool:
    """Whether a folder holds low-rank factors rather than weights."""
    return (Path(path) / adapter.CONFIG).is_file()


def read_adapter(path: str | Path) -> Adapter:
    """The adapter in a folder."""
    return adapter.read(Path(path), _stored)


def bare_names(names: Iterable[str]) -> dict[str, str]:
    """Names without what wrappers put in front of them: name -> bare name.

    `_orig_mod` (torch.compile) is reserved, so it is removed wherever it stands. `module.` (DataParallel) is an
    ordinary name too, so it is removed only while every name starts with it.
    """
    names = list(names)
    bare = [".".join(part for part in name.split(".") if part != "_orig_mod") for name in names]
    while bare and all(name.startswith("module.") for name in bare):
        bare = [name.removeprefix("module.") for name in bare]
    if len(set(bare)) < len(names):
        return {name: name for name in names}
    return dict(zip(names, bare, strict=True))


def _stored(path: Path) -> Stored:
    if path.is_dir():
        return distributed.read(path) if (path / distributed.METADATA).is_file() else _stored(
            folder.weights(path, KNOWN))
    sharded = path.name.endswith(".index.json")
    if not sharded and path.suffix.lower() not in READERS:
        raise InputError(f"{path} ends in {path.suffix!r}; checkpoints that can be read end in {', '.join(KNOWN)}")
    if not path.exists():
        raise InputError(f"there is no checkpoint {path}; give the path of an existing file")
    return shards.read(path, _stored) if sharded else READERS[path.suffix.lower()](path)


def _cleaned(stored: Stored) -> Stored:
    """Under bare names, in float32 or wider; and what that changed."""
    entries, notes = dict(stored.entries), list(stored.notes)
    if "n_averaged" in entries and all(k.startswith("module.") for k in entries if k != "n_averaged"):
        del entries["n_averaged"]
        notes.append("left out the counter n_averaged of an averaged model")
    bare = bare_names(entries)
    if renamed := [k for k, v in bare.items() if k != v]:
        notes.append(f"stripped wrapper prefixes from {len(renamed)} of {len(entries)} names "
                     f"({renamed[0]} is now {bare[renamed[0]]})")
    entries = {bare[k]: v for k, v in entries.items()}
    for dtype in sorted({v.dtype for v in entries.values() if v.narrow}, key=str):
        notes.append(f"widened {sum(v.dtype is dtype for v in entries.values())} tensors from "
                     f"{str(dtype).removeprefix('torch.')} to float32")
    entries = {k: v.widened() if v.narrow else v for k, v in entries.items()}
    return replace(stored, entries=entries, notes=tuple(notes))


def _check_finite(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    bad = {k: int((~v.isfinite()).sum()) for k, v in tensors.items() if v.is_floating_point() or v.is_complex()}
    bad = {k: count for k, count in bad.items() if count}
    if bad:
        first = next(iter(bad))
        raise InputError(f"{path} has weights that are NaN or infinite: {bad[first]} of {tensors[first].numel()} in "
                         f"{first}, the first of {len(bad)} such tensors; use a checkpoint from before it diverged")
