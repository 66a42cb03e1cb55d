"""A folder that torch.distributed.checkpoint wrote: `.metadata` and `*.distcp`."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from genmeasure.checkpoints.stored import Entry, Stored
from genmeasure.errors import InputError

METADATA = ".metadata"
WRAPPERS = ("state_dict.", "model_state_dict.", "model.", "app.model.")
"""What stands before the names of the weights where optimiser states are stored beside them."""
ALLOWED = {
    "torch": {"Size", "device"}, "torch._C": {"device"}, "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "collections": {"OrderedDict"}, "pathlib": {"Path", "PosixPath", "WindowsPath"}}
"""What the list of tensors is made of, by module; torch's dtypes are allowed as well. Everything else is refused, so
nothing that a file names is run."""


class _Reader(dcp.FileSystemReader):
    """Reads the list of tensors without running code, and tensors as torch.load(weights_only=True) does."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return _metadata(Path(self.path))


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in ALLOWED.get(module, ()) or (module == "torch" and isinstance(getattr(torch, name, None),
                                                                                torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not part of a list of tensors")


def read(folder: Path) -> Stored:
    """The tensors of the model; those of an optimiser are left out.

    Raises `InputError` for a list of tensors that is damaged or names code, and for files that are missing.
    """
    metadata = _metadata(folder)
    missing = sorted({info.relative_path for info in (metadata.storage_data or {}).values()
                      if not (folder / info.relative_path).is_file()})
    if missing:
        raise InputError(f"{folder} lacks {missing[0]}, the first of {len(missing)} missing files that its {METADATA} "
                         "names; copy the whole folder again")
    names = {k: v for k, v in metadata.state_dict_metadata.items() if isinstance(v, TensorStorageMetadata)}
    prefix = next((p for p in WRAPPERS if any(k.startswith(p) for k in names)), "")
    return Stored({k.removeprefix(prefix): Entry(tuple(v.size), v.properties.dtype, _rows(folder, k, v))
                   for k, v in names.items() if k.startswith(prefix)}, "distributed",
                  notes=(f"opened the key {prefix[:-1]!r}",) if prefix else ())


def _rows(folder: Path, name: str, stored: TensorStorageMetadata) -> Any:
    def rows(start: int, stop: int | None) -> Tensor:
        tensor = torch.empty(stored.size, dtype=stored.properties.dtype)
        try:
            dcp.load({name: tensor}, storage_reader=_Reader(folder), no_dist=True)
        except (CheckpointException, OSError, ValueError, RuntimeError) as error:
            first = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
            reason = (str(first).splitlines() or [type(first).__name__])[0].split(". ")[0]
            raise InputError(f"{name} cannot be read from {folder} ({reason}); it is damaged or incomplete: "
                             "copy the whole folder again") from error
        return tensor if tensor.ndim == 0 else tensor[start:stop]
    return rows


def _metadata(folder: Path) -> Metadata:
    try:
        with (folder / METADATA).open("rb") as file:
            found = _Unpickler(file).load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise InputError(f"{folder / METADATA} cannot be read as a list of tensors ({error or type(error).__name__}); "
                         "it is damaged or was not written by torch.distributed.checkpoint: copy it again") from error
    if not isinstance(found, Metadata):
        raise InputError(f"{folder / METADATA} holds a {type(found).__name__}, not a list of tensors; give a folder "
                         "that torch.distributed.checkpoint wrote")
    return found
