"""`timm:NAME`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import nn

from genmeasure.checkpoints.build import created, library
from genmeasure.errors import unknown
from genmeasure.registry import model_family


@model_family("timm", source="timm (Wightman 2019)")
def timm(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """timm's models by name, such as timm:vit_base_patch16_224?num_classes=67.

    Weights are drawn; `timm:NAME` as the start takes the pretrained ones. Raises `InputError` without the library, for
    an unknown name and for arguments that the model does not take.
    """
    found = library("timm", "vision")
    if not found.is_model(name):  # accepts NAME.TAG, which the list does not hold
        raise unknown("timm model", name, found.list_models())
    return created(f"timm:{name}", functools.partial(found.create_model, name), arguments)
