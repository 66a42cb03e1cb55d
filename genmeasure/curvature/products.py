"""Hessian-vector products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genmeasure.data.batches import Batch
from genmeasure.risk import HESSIAN_PRODUCT, Risk, Weights


def batch_hessian_product(risk: Risk, batch: Batch, vectors: Weights,
                          losses: Callable | None = None) -> dict[str, Tensor]:
    """H v for the sum of the losses of a batch, by double backward.

    vectors: directions by layer. Only the given layers take part, so a single layer gives its diagonal block H_ii v_i,
    and all layers together sum_j H_ij v_j with the cross-layer blocks. losses: (weights, batch) -> [batch], by default
    the losses of `risk`; `risk.residual_losses` gives (H - G) v.
    """
    batch = risk.place(batch)
    risk.spend(HESSIAN_PRODUCT, len(batch))
    point = {k: risk.weights[k].clone().requires_grad_() for k in vectors}
    with torch.enable_grad():
        total = (losses or risk.losses)(point, batch).sum()
        slopes = torch.autograd.grad(total, list(point.values()), create_graph=True)
        along = sum((g * vectors[k]).sum() for k, g in zip(point, slopes, strict=True))
        products = torch.autograd.grad(along, list(point.values()), materialize_grads=True)
    return dict(zip(point, products, strict=True))


def hessian_product(risk: Risk, vectors: Weights) -> dict[str, Tensor]:
    """H v for the mean loss over the data set."""
    total = risk.engine.sum(lambda batch: batch_hessian_product(risk, batch, vectors), risk.batches)
    return {k: h / risk.batches.size for k, h in total.items()}
