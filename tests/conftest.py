"""Tests run side by side: one thread each, in worker processes too, no figure windows and no downloads."""

from __future__ import annotations

import importlib
import os
import warnings
from types import ModuleType

import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)
with warnings.catch_warnings():  # torch 2.13 calls its own deprecated torch.jit.script when forward mode is first used
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch._decomp.decompositions_for_jvp


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    """torchvision, which timm and transformers import too; ask for it before them.

    Its wheel fails at import beside a torch for the CPU alone, for want of two operators that no classifier uses.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return importlib.import_module("torchvision")


OPERATORS = torch.library.Library("torchvision", "FRAGMENT")  # its operators last as long as it does
