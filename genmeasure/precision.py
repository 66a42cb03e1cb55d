"""In how many bits a subject is measured."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """What numbers are rounded to.

    weights: dtype of weights and inputs; noise is added to weights in it. products: what a CUDA device rounds the
    factors of float32 products to, `ieee` (nothing) or `tf32` (10 bits). passes: dtype to which the factors of products
    in a pass through the model are rounded, and in which activations are kept; None for that of the weights. kernels:
    what the order of a sum may change in the outputs, relative to the largest.
    """

    name: str
    weights: torch.dtype = torch.float32
    products: str = "ieee"
    passes: torch.dtype | None = None
    kernels: float = 1e-2

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager:
        """Around one pass through the model; no cast weight is kept, since the next pass may find it moved."""
        if self.passes is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, self.passes, cache_enabled=False)


FLOAT32 = Precision("float32")
PRECISIONS = {p.name: p for p in (
    FLOAT32, Precision("float64", torch.float64, kernels=1e-6), Precision("tf32", products="tf32"),
    Precision("bfloat16", passes=torch.bfloat16, kernels=1e-1))}
"""By the name that `dtype` takes."""
