"""A folder: of transformers (safetensors or legacy `pytorch_model.bin`, whole or in shards), or with one file in it."""

from __future__ import annotations

from pathlib import Path

from genmeasure.errors import InputError

NAMES = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
"""What transformers writes, the safer format first."""


def weights(folder: Path, extensions: tuple[str, ...]) -> Path:
    """The file in which a folder's weights are, or the index of its shards; extensions: of checkpoint files.

    Raises `InputError` where there is none, or more than one to choose from.
    """
    found = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    if found is not None:
        return found
    some = sorted(p for p in folder.iterdir() if p.name.endswith(".index.json"))
    some = some or sorted(p for p in folder.iterdir() if p.suffix.lower() in extensions)
    if len(some) == 1:
        return some[0]
    if not some:
        raise InputError(f"{folder} is a folder without weights (looked for {', '.join(NAMES)}, .metadata, "
                         f"adapter_config.json and files that end in {', '.join(extensions)}); give the folder or file "
                         "that holds them")
    raise InputError(f"{folder} holds {len(some)} checkpoints ({', '.join(p.name for p in some[:3])}); name the one "
                     "that is meant")
