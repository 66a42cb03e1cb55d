"""`*.index.json`: a table of which file holds which tensor, as transformers writes for large models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from genmeasure.checkpoints.stored import Stored
from genmeasure.errors import InputError


def read(path: Path, read_file: Callable[[Path], Stored]) -> Stored:
    """The tensors of all shards; read_file: how one shard is read.

    Raises `InputError` for a table that is damaged, a shard that is missing and a tensor that its shard lacks.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = {name: path.parent / file for name, file in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} holds no weight_map of tensors to files ({type(error).__name__}); it is damaged or "
                         "of another format: copy or download it again") from error
    outside = next((f for f in files.values() if f.parent != path.parent), None)
    if outside is not None:
        raise InputError(f"{path} names the shard {outside}, which is in another folder; shards lie beside their index")
    shards = sorted(set(files.values()))
    missing = [file.name for file in shards if not file.is_file()]
    if missing:
        raise InputError(f"{len(missing)} of the {len(shards)} shards that {path} names are missing "
                         f"({', '.join(missing[:3])}); copy or download all of them")
    opened = {file: read_file(file) for file in shards}
    lacking = next((name for name, file in files.items() if name not in opened[file].entries), None)
    if lacking is not None:
        raise InputError(f"{lacking} is not in the shard {files[lacking].name}, where {path} says it is; "
                         "index and shards are of different checkpoints: copy or download all of them")
    some = next(iter(opened.values()))
    return Stored({name: opened[file].entries[name] for name, file in files.items()}, some.format, some.metadata,
                  (f"read {len(shards)} shards", *dict.fromkeys(n for s in opened.values() for n in s.notes)))
