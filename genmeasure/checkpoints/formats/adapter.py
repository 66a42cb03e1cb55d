"""A folder that PEFT wrote: low-rank factors (LoRA) beside `adapter_config.json`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from genmeasure.checkpoints.stored import Stored
from genmeasure.errors import InputError

CONFIG = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
MORE = ("use_dora", "use_qalora", "lora_bias", "megatron_config", "alora_invocation_tokens", "trainable_token_indices",
        "target_parameters")
"""Settings with which an adapter is more than a product of two factors per weight."""


@dataclass(frozen=True)
class Factors:
    """What an adapter adds to one weight: scale * b @ a, laid out as the weight is.

    a: [rank, in, ...], b: [out, rank, ...]; transposed: the weight is [in, out] (transformers' Conv1D, embeddings).
    """

    a: Tensor
    b: Tensor
    scale: float
    transposed: bool

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of the weight that they fit, or None where they do not fit each other."""
        if self.a.shape[0] != self.b.shape[1]:
            return None
        out, inner = self.b.shape[0], self.a.shape[1]
        return (inner, out) if self.transposed else (out, inner, *self.a.shape[2:])

    def product(self) -> Tensor:
        """scale * b @ a in float32, of the weight's shape."""
        moved = self.scale * (self.b.flatten(1).float() @ self.a.flatten(1).float())
        return moved.T if self.transposed else moved.reshape(self.shape)


@dataclass(frozen=True)
class Adapter:
    """Factors by the name of the weight that they change, and weights that were trained and stored whole.

    base: the name of the checkpoint that it was trained on, as its configuration says. path: the folder. notes: what
    reading its file changed.
    """

    factors: dict[str, Factors]
    whole: dict[str, Tensor]
    base: str
    path: str
    notes: tuple[str, ...] = ()

    def merged(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of `base` with the adapter's products added and its whole weights put in.

        Raises `InputError` where `base` lacks a weight or has it in another shape: it is not what was adapted.
        """
        result = dict(base)
        for name, factors in self.factors.items():
            if name not in result or factors.shape != tuple(result[name].shape):
                raise self.other_base(name, None if name not in result else tuple(result[name].shape))
            result[name] = result[name] + factors.product().to(result[name].dtype)
        return result | self.whole

    def other_base(self, name: str, shape: tuple[int, ...] | None) -> InputError:
        """The sentence for a base that lacks the weight `name`, or has it in another shape."""
        factors = self.factors[name]
        reason = f"it changes {name}, which the start lacks" if shape is None else \
            f"its factors {list(factors.b.shape)} and {list(factors.a.shape)} do not fit {name} {list(shape)}"
        return InputError(f"the adapter {self.path} is for another base ({reason}); give the base that it was trained "
                          f"on as the start" + (f": {self.base}" if self.base else ""))


def read(folder: Path, read_file: Callable[[Path], Stored]) -> Adapter:
    """The adapter in a folder; read_file: how its one file of weights is read.

    Raises `InputError` for another kind of adapter than LoRA, for a variant whose product is not scale * B A, and for
    factors without their partner.
    """
    settings = _settings(folder)
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        raise InputError(f"{folder} holds no {' or '.join(FILES)}; copy or download the whole folder")
    stored = read_file(file)
    halves: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name, entry in stored.entries.items():
        bare = name.removeprefix(PREFIX).replace(".modules_to_save", "").replace(".base_layer", "")
        found = re.fullmatch(r"(.+)\.lora_(?:embedding_)?([AB])(?:\.default)?(?:\.weight)?", bare)
        if found is None:
            whole[bare] = entry.load().float()
        else:
            halves.setdefault(found[1], {"embedding": "embedding" in bare})[found[2]] = entry.load()
    alone = next((name for name, both in halves.items() if not {"A", "B"} <= both.keys()), None)
    if alone is not None:
        raise InputError(f"{file} holds one factor of {alone} without the other; copy or download it again")
    factors = {f"{name}.weight": Factors(both["A"], both["B"], _scale(name, both["A"].shape[0], settings),
                                         bool(settings.get("fan_in_fan_out")) or both["embedding"])
               for name, both in halves.items()}
    return Adapter(factors, whole, settings.get("base_model_name_or_path") or "", str(folder), stored.notes)


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind = settings.get("peft_type")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{folder / CONFIG} is no table of settings in JSON ({type(error).__name__}); copy or "
                         "download it again") from error
    if kind != "LORA":
        raise InputError(f"{folder} holds an adapter of the kind {kind}; LoRA can be merged, for others save the "
                         "merged model (merge_and_unload) and read that")
    other = next((k for k in MORE if settings.get(k)), None)
    if other is not None:
        raise InputError(f"{folder} holds an adapter with {other}, which is more than a product of two factors; save "
                         "the merged model (merge_and_unload) and read that")
    return settings


def _scale(name: str, rank: int, settings: Mapping[str, Any]) -> float:
    """alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA (Kalajdzievski 2023, arXiv:2312.03732)."""
    alpha = settings.get("lora_alpha", rank)
    for pattern, own in (settings.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", name):
            alpha = own
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
