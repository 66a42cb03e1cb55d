"""Tensors that are still in their files: names, shapes and dtypes at hand, numbers read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from genmeasure.errors import InputError


@dataclass(frozen=True)
class Entry:
    """One tensor in a file.

    rows(start, stop): these rows along the first axis; rows(0, None) is the whole tensor, for a single number too.
    same_as: equal for names under which a file holds one and the same tensor, else None.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: Callable[[int, int | None], Tensor] = field(repr=False)
    same_as: tuple | None = None

    @classmethod
    def of(cls, tensor: Tensor) -> Entry:
        """A tensor that is in memory, or mapped from a file."""
        kept = tensor.detach()
        place = (kept.untyped_storage().data_ptr(), kept.storage_offset(), kept.stride()) if kept.numel() else None
        return cls(tuple(kept.shape), kept.dtype, lambda start, stop: kept if kept.ndim == 0 else kept[start:stop],
                   place)

    @property
    def narrow(self) -> bool:
        """Whether the numbers are floating point below float32."""
        return self.dtype.is_floating_point and self.dtype.itemsize < 4

    def widened(self) -> Entry:
        """The same numbers in float32."""
        return replace(self, dtype=torch.float32, rows=lambda start, stop: self.rows(start, stop).to(torch.float32))

    def load(self) -> Tensor:
        return self.rows(0, None)


@dataclass(frozen=True)
class Stored:
    """What a file or folder holds.

    format: of the files. metadata: text that they carry. notes: what was opened or left out, one sentence each.
    """

    entries: dict[str, Entry]
    format: str
    metadata: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def damaged(path: Path, error: Exception) -> InputError:
    """The sentence for a file that cannot be opened: its size, and the reason where the library says one."""
    with path.open("rb") as file:
        if file.read(20).startswith(b"version https://git"):
            return InputError(f"{path} is a pointer of Git LFS, not the file itself; fetch it with: git lfs pull")
    reason = (str(error).strip().splitlines() or [""])[0].split(". ")[0]
    if " " not in reason or reason.startswith("Weights only"):  # says nothing about the file
        reason = type(error).__name__
    return InputError(f"{path} cannot be read as a checkpoint ({path.stat().st_size} bytes; {reason}); "
                      "it is damaged, incomplete or of another format: copy or download it again")
