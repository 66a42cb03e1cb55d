"""`.pt`, `.pth`, `.th`, `.bin`, `.ckpt`: what torch.save wrote, opened without running code that it carries."""

from __future__ import annotations

import contextlib
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genmeasure.checkpoints.stored import Entry, Stored, damaged
from genmeasure.errors import InputError

EXTENSIONS = (".pt", ".pth", ".th", ".bin", ".ckpt")
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts store the weights, the first one present is opened; they may be nested."""
SAVE_INSTEAD = "save model.state_dict() with torch.save, or a .safetensors file, and read that"


def read(path: Path) -> Stored:
    """The tensors by name, below wrapper keys (Lightning's `state_dict` among them); files of torch >= 1.6 are mapped
    and read when needed, older ones at once."""
    content, notes = _opened(_loaded(path), path)
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if left := [str(k) for k in content if str(k) not in tensors]:
        notes.append(f"left out what is no tensor: {', '.join(left[:5])}")
    return Stored({k: Entry.of(v) for k, v in tensors.items()}, "pickle", {}, tuple(notes))


def _loaded(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle can raise nearly anything, KeyError and struct.error included
        text = str(error)
        if "TorchScript" in text:
            raise InputError(f"{path} is a TorchScript archive, not weights; {SAVE_INSTEAD}") from error
        if "GLOBAL" in text:
            raise _carries_code(path, text) from error
        raise damaged(path, error) from error


def _carries_code(path: Path, text: str) -> InputError:
    objects = re.findall(r"GLOBAL ([\w.]+)", text)[:1]
    with contextlib.suppress(Exception):  # files in the format of torch < 1.6 cannot be listed; one name has to do
        objects = torch.serialization.get_unsafe_globals_in_checkpoint(path) or objects
    if any(name.startswith("torch.nn.modules.") for name in objects):
        return InputError(f"{path} is a pickled module ({objects[0]}), and opening it would run its code, "
                          f"which is not done; {SAVE_INSTEAD}")
    return InputError(f"{path} holds more than tensors ({', '.join(objects[:3])}), and opening it would run code, "
                      f"which is not done; {SAVE_INSTEAD}")


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
