"""`.npz` of Google's vision transformers (Dosovitskiy et al. 2021; Steiner et al. 2021), under timm's names."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genmeasure.checkpoints.stored import Entry, Stored, damaged
from genmeasure.errors import InputError

NAMES = (  # theirs -> timm's
    (r"^cls$", "cls_token"),
    (r"^Transformer/posembed_input/pos_embedding$", "pos_embed"),
    (r"^embedding/", "patch_embed.proj."),
    (r"^Transformer/encoder_norm/", "norm."),
    (r"^pre_logits/", "pre_logits.fc."),
    (r"^Transformer/encoderblock_(\d+)/LayerNorm_0/", r"blocks.\1.norm1."),
    (r"^Transformer/encoderblock_(\d+)/LayerNorm_[12]/", r"blocks.\1.norm2."),
    (r"^Transformer/encoderblock_(\d+)/MlpBlock_\d+/Dense_(\d)/", r"blocks.\1.mlp.fc\2+."),
    (r"^Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_\d+/out/", r"blocks.\1.attn.proj."),
    (r"^Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_\d+/(query|key|value)/", r"blocks.\1.attn.\2."),
)
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
PARTS = ("query", "key", "value")


def read(path: Path) -> Stored:
    """Weights [out, in] for torch, query, key and value stacked as timm does; heads are laid side by side.

    Raises `InputError` for a damaged file, Python objects, and arrays that no vision transformer of Google's has.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name.removeprefix("opt/target/"): file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib, numpy
        raise damaged(path, error) from error
    tensors = {_name(name, path): _tensor(name, array, path) for name, array in arrays.items()}
    for query in [k for k in tensors if ".attn.query." in k]:
        some = [query.replace("query", part) for part in PARTS]
        tensors[query.replace("query", "qkv")] = torch.cat([tensors.pop(k) for k in some])
    return Stored({k: Entry.of(v) for k, v in tensors.items()}, "google-vit",
                  notes=("read Google's vision transformer under timm's names",))


def _name(name: str, path: Path) -> str:
    for pattern, ours in NAMES:
        if re.match(pattern, name):
            stem, _, leaf = re.sub(pattern, ours, name).rpartition(".")
            stem = re.sub(r"fc(\d)\+$", lambda found: f"fc{int(found[1]) + 1}", stem)
            return f"{stem}.{LEAVES.get(leaf, leaf)}" if stem else leaf
    if name.startswith("head/"):
        return f"head.{LEAVES[name.removeprefix('head/')]}"
    raise InputError(f"{path} holds the array {name!r}, which Google's vision transformers do not have; give "
                     "one of their .npz files, or a checkpoint of another format")


def _tensor(name: str, array: np.ndarray, path: Path) -> Tensor:
    if array.dtype.kind != "f":
        raise InputError(f"{path} holds {name!r} of type {array.dtype}; weights are floating-point numbers, so give "
                         "one of Google's vision transformers, or a checkpoint of another format")
    if "MultiHeadDotProductAttention" in name:
        array = array.reshape(-1, array.shape[-1]) if "/out/" in name and array.ndim == 3 else \
            array.reshape(array.shape[0], -1) if array.ndim == 3 else array.reshape(-1)
    if name.endswith("/kernel"):
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    return torch.from_numpy(np.ascontiguousarray(array))
