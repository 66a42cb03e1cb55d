"""Write a checkpoint as safetensors."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from genmeasure.errors import InputError


def write(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """Write `tensors` to `path` (`.safetensors`), all or nothing, and return the path.

    metadata: text kept beside the weights. Tensors that share memory are stored one by one. Raises `InputError` for
    another extension, for no tensors, and for metadata that is not text.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise InputError(f"{path} ends in {path.suffix!r}; checkpoints are written as .safetensors, rename it")
    if not tensors:
        raise InputError(f"no tensors came for {path}; give at least one, as in model.state_dict()")
    wrong = [f"{k}={v!r}" for k, v in (metadata or {}).items() if not (isinstance(k, str) and isinstance(v, str))]
    if wrong:
        raise InputError(f"the metadata {wrong[0]} came for {path}; names and values must be text, use str()")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.tmp")
    try:
        save_file(_separate(tensors), temporary, dict(metadata or {}))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, of which no two share memory (safetensors refuses those that do)."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        result[name] = tensor
    return result
