"""`.safetensors`: a header and plain numbers."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from genmeasure.checkpoints.stored import Entry, Stored, damaged


def read(path: Path) -> Stored:
    """The tensors of one file. It is opened anew for each of them, so that what was read does not stay mapped."""
    try:
        with safe_open(path, "pt") as file:
            entries = {name: _entry(path, name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except Exception as error:  # the library's own exception type, OSError, and what torch raises for odd dtypes
        raise damaged(path, error) from error
    return Stored(entries, "safetensors", metadata)


def _entry(path: Path, name: str, mapped: Tensor) -> Entry:
    def rows(start: int, stop: int | None) -> Tensor:
        try:
            with safe_open(path, "pt") as file:
                if not shape or (start, stop) == (0, None):
                    return file.get_tensor(name).clone()
                return file.get_slice(name)[start:stop].clone()
        except Exception as error:
            raise damaged(path, error) from error
    shape = tuple(mapped.shape)
    return Entry(shape, mapped.dtype, rows)
