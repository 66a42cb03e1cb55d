"""Where a checkpoint is: a path, or a name whose weights are on disk or on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from genmeasure.checkpoints.build import library
from genmeasure.data import manifest
from genmeasure.errors import InputError, unknown

HUB = "hub:"
PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model")
"""Files of a model on the hub: configuration, weights, tokenizer; pickled weights only where there are no others."""


def locate(text: str) -> Path:
    """The file or folder that `text` names.

    A path; a checkpoint of the manifest; `hub:OWNER/NAME`, fetched into the hub's cache unless it is there;
    `torchvision:NAME` or `timm:NAME`, whose pretrained weights are looked for where these libraries keep them.

    Raises `InputError` where it is in none of these places.
    """
    family, colon, name = text.partition(":")
    if Path(text).exists():
        return Path(text)
    if f"{family}{colon}" == HUB:
        return from_hub(name)
    if family in ("torchvision", "timm") and colon:
        return _torchvision(name) if family == "torchvision" else _timm(name)
    if text in set(manifest.entries().query("kind == 'checkpoint'")["name"]):
        source = manifest.entry(text)["source"]
        return from_hub(source.removeprefix(HUB)) if source.startswith(HUB) else manifest.verify(text)
    return Path(text)


def from_hub(name: str) -> Path:
    """The folder of `OWNER/NAME` or `OWNER/NAME@REVISION` in the hub's cache; without a network, from there alone."""
    hub = library("huggingface_hub", "text")
    repository, _, revision = name.partition("@")
    for patterns in (PATTERNS, ("pytorch_model*.bin*",)):
        try:
            folder = Path(hub.snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
        except Exception as error:  # no network, no such repository, no access: each an exception of its own
            raise InputError(f"{name!r} could not be taken from the Hugging Face hub ({type(error).__name__}); check "
                             "the name and the network, or give a folder on disk") from error
        if any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin")):
            return folder
    raise InputError(f"{name!r} on the Hugging Face hub holds no weights that can be read; give a repository with "
                     "safetensors")


def _torchvision(name: str) -> Path:
    models = library("torchvision", "vision").models
    name, _, wanted = name.partition("@")
    if name not in models.list_models():
        raise unknown("torchvision model", name, models.list_models())
    weights = models.get_model_weights(name)
    known = {w.name: w for w in weights}
    if wanted and wanted not in known:
        raise unknown(f"weights of torchvision:{name}", wanted, known)
    chosen = known[wanted] if wanted else weights.DEFAULT
    return _kept(chosen.url, f"torchvision:{name}@{chosen.name}")


def _timm(name: str) -> Path:
    timm = library("timm", "vision")
    found: Any = timm.get_pretrained_cfg(name, allow_unregistered=True) if timm.is_model(name) else None
    if found is None:
        raise unknown("timm model", name, timm.list_models())
    kept = _cached(found.url) if found.url else None
    if kept is not None and kept.is_file():
        return kept
    return from_hub(found.hf_hub_id) if found.hf_hub_id else _kept(found.url, f"timm:{name}")


def _cached(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def _kept(url: str, what: str) -> Path:
    """A file of torch.hub's cache."""
    path = _cached(url)
    if not path.is_file():
        raise InputError(f"the weights of {what} are not at {path}; download {url} to there, or give a checkpoint file")
    return path
