"""`torchvision:NAME`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import nn

from genmeasure.checkpoints.build import created, library
from genmeasure.errors import unknown
from genmeasure.registry import model_family


@model_family("torchvision", source="https://docs.pytorch.org/vision/stable/models.html")
def torchvision(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """torchvision's models by name, such as torchvision:resnet18?num_classes=10.

    Weights are drawn; `torchvision:NAME` as the start takes the pretrained ones. Raises `InputError` without the
    library, for an unknown name and for arguments that the model does not take.
    """
    models = library("torchvision", "vision").models
    if name not in models.list_models():
        raise unknown("torchvision model", name, models.list_models())
    return created(f"torchvision:{name}", functools.partial(models.get_model, name), arguments)
