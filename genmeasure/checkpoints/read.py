"""Read a checkpoint file into named tensors, without ever running code that the file carries."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from genmeasure.errors import InputError

PICKLED = (".pt", ".pth", ".th", ".bin", ".ckpt")
KNOWN = (".safetensors", *PICKLED)
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts store the weights, the first one present is opened; they may be nested."""
SAVE_INSTEAD = "save model.state_dict() with torch.save, or a .safetensors file, and read that"


@dataclass(frozen=True)
class Checkpoint:
    """Weights by name.

    tensors: on the CPU, floating point in float32 or wider; integer counters as stored. path: the file.
    format: `safetensors` or `pickle`. metadata: the text that a safetensors file carries.
    notes: what reading changed (wrapper keys opened, prefixes stripped, dtypes widened), one sentence each.
    """

    tensors: dict[str, Tensor]
    path: str
    format: str
    metadata: dict[str, str]
    notes: tuple[str, ...]


def read(path: str | Path) -> Checkpoint:
    """The checkpoint in a file: `.safetensors`, or `.pt`, `.pth`, `.th`, `.bin`, `.ckpt` with tensors only.

    Raises `InputError` for a file that is missing, of another kind, damaged, without tensors, that would run code
    (it is not run), or whose weights are not all finite.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; single files are read ({', '.join(KNOWN)}), name the one inside it")
    if path.suffix.lower() not in KNOWN:
        raise InputError(f"{path} ends in {path.suffix!r}; checkpoints that can be read end in {', '.join(KNOWN)}")
    if not path.exists():
        raise InputError(f"there is no checkpoint {path}; give the path of an existing file")
    if path.suffix.lower() == ".safetensors":
        kind, (found, metadata), notes = "safetensors", _safetensors(path), []
    else:
        kind, (found, notes), metadata = "pickle", _opened(_pickle(path), path), {}
    tensors, more = _cleaned(found)
    if not tensors:
        raise InputError(f"{path} holds no tensors; {SAVE_INSTEAD}")
    _check_finite(tensors, path)
    return Checkpoint(tensors, str(path), kind, metadata, (*notes, *more))


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


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except Exception as error:  # the library's own exception type, OSError, and what torch raises for odd dtypes
        raise _damaged(path, error) from error


def _pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise nearly anything, KeyError and struct.error included
        text = str(error)
        if "TorchScript" in text:
            raise InputError(f"{path} is a TorchScript archive, not weights; {SAVE_INSTEAD}") from error
        if "GLOBAL" in text:
            raise _carries_code(path, text) from error
        raise _damaged(path, error) from error


def _carries_code(path: Path, text: str) -> InputError:
    objects = re.findall(r"GLOBAL ([\w.]+)", text)[:1]
    with contextlib.suppress(Exception):  # files in the format of torch < 1.6 cannot be listed; one name has to do
        objects = torch.serialization.get_unsafe_globals_in_checkpoint(path) or objects
    if any(name.startswith("torch.nn.modules.") for name in objects):
        return InputError(f"{path} is a pickled module ({objects[0]}), and opening it would run its code, "
                          f"which is not done; {SAVE_INSTEAD}")
    return InputError(f"{path} holds more than tensors ({', '.join(objects[:3])}), and opening it would run code, "
                      f"which is not done; {SAVE_INSTEAD}")


def _damaged(path: Path, error: Exception) -> InputError:
    with path.open("rb") as file:
        if file.read(20).startswith(b"version https://git"):
            return InputError(f"{path} is a pointer of Git LFS, not the file itself; fetch it with: git lfs pull")
    reason = (str(error).strip().splitlines() or [""])[0].split(". ")[0]
    if " " not in reason or reason.startswith("Weights only"):  # says nothing about the file
        reason = type(error).__name__
    return InputError(f"{path} cannot be read as a checkpoint ({path.stat().st_size} bytes; {reason}); "
                      "it is damaged, incomplete or of another format: copy or download it again")


def _opened(content: Any, path: Path) -> tuple[dict[str, Any], list[str]]:
    """Open wrapper keys and one-element lists until names map to tensors."""
    notes = []
    while True:
        if isinstance(content, (list, tuple)) and len(content) == 1:
            content = content[0]
            notes.append("opened a list of one")
            continue
        if not isinstance(content, Mapping):
            raise InputError(f"{path} holds a {type(content).__name__}, not tensors by name; {SAVE_INSTEAD}")
        key = next((k for k in WRAPPERS if isinstance(content.get(k), (Mapping, list, tuple))), None)
        if key is None:
            break
        content = content[key]
        notes.append(f"opened the key {key!r}")
    if not any(isinstance(value, Tensor) for value in content.values()):
        keys = ", ".join(repr(k) for k in list(content)[:5]) or "none"
        raise InputError(f"{path} holds no tensors by name (keys: {keys}; weights are looked for at the top and under "
                         f"{', '.join(WRAPPERS)}); {SAVE_INSTEAD}")
    return dict(content), notes


def _cleaned(found: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors only, under bare names, in float32 or wider; and what that changed."""
    notes = []
    tensors = {str(k): v.detach() for k, v in found.items() if isinstance(v, Tensor)}
    if left := [str(k) for k in found if str(k) not in tensors]:
        notes.append(f"left out what is no tensor: {', '.join(left[:5])}")
    if "n_averaged" in tensors and all(k.startswith("module.") for k in tensors if k != "n_averaged"):
        del tensors["n_averaged"]
        notes.append("left out the counter n_averaged of an averaged model")
    bare = bare_names(tensors)
    if renamed := [k for k, v in bare.items() if k != v]:
        notes.append(f"stripped wrapper prefixes from {len(renamed)} of {len(tensors)} names "
                     f"({renamed[0]} is now {bare[renamed[0]]})")
    tensors = {bare[k]: v for k, v in tensors.items()}
    for dtype in sorted({v.dtype for v in tensors.values() if v.is_floating_point() and v.dtype.itemsize < 4}, key=str):
        narrow = [k for k, v in tensors.items() if v.dtype is dtype]
        tensors.update({k: tensors[k].to(torch.float32) for k in narrow})
        notes.append(f"widened {len(narrow)} tensors from {str(dtype).removeprefix('torch.')} to float32")
    return tensors, notes


def _check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    bad = {k: int((~v.isfinite()).sum()) for k, v in tensors.items() if v.is_floating_point() or v.is_complex()}
    bad = {k: count for k, count in bad.items() if count}
    if bad:
        first = next(iter(bad))
        raise InputError(f"{path} has weights that are NaN or infinite: {bad[first]} of {tensors[first].numel()} in "
                         f"{first}, the first of {len(bad)} such tensors; use a checkpoint from before it diverged")
