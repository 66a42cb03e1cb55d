"""Extreme eigenvalues of the Hessian."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genmeasure.curvature.lanczos import extreme_eigenvalues
from genmeasure.curvature.products import hessian_product
from genmeasure.estimate import Estimate
from genmeasure.layers import Layer
from genmeasure.registry import measure
from genmeasure.subject import Subject


@measure("hessian-top", index=("layer", "term"), source="measures.md 10", unit=dict.fromkeys(
    ("largest", "smallest", "largest-residual", "smallest-residual"), "loss/weight²"))
def hessian_top(subject: Subject, *, per_layer: bool = False, rtol: float = 1e-3, max_products: int = 100,
                seed: int = 0) -> dict[tuple[str, str], Estimate]:
    """Algebraically largest and smallest eigenvalue of the Hessian of the mean training loss over all selected layers.

    By Lanczos with full re-orthogonalisation. `residual` terms bound the distance to an eigenvalue; `converged` is 1
    where both are at most `rtol` times the larger modulus. per_layer: also of every diagonal block H_ii.
    """
    groups: dict[str, Sequence[Layer]] = {x.name: (x,) for x in subject.layers} if per_layer else {}
    result: dict[tuple[str, str], Estimate] = {}
    for name, layers in {**groups, "total": subject.layers}.items():
        for term, value in _extremes(subject, layers, rtol, max_products, seed).items():
            result[name, term] = value
    return result


def _extremes(subject: Subject, layers: Sequence[Layer], rtol: float, max_products: int,
              seed: int) -> dict[str, Estimate]:
    shapes = [subject.risk.weights[x.name].shape for x in layers]
    sizes = [s.numel() for s in shapes]

    def product(vector: Tensor) -> Tensor:
        pieces = zip(layers, vector.split(sizes), shapes, strict=True)
        result = hessian_product(subject.risk, {x.name: piece.reshape(s) for x, piece, s in pieces})
        return torch.cat([result[x.name].reshape(-1) for x in layers])
    like = subject.risk.weights[layers[0].name]
    ends = extreme_eigenvalues(product, sum(sizes), rtol=rtol, max_products=max_products, like=like, seed=seed)
    result = {}
    for term, found in zip(("smallest", "largest"), ends, strict=True):
        result[term] = Estimate(found.value, 0.0, found.products)
        result[f"{term}-residual"] = Estimate(found.residual, 0.0, found.products)
    result["converged"] = Estimate(float(all(found.converged for found in ends)), 0.0, ends[0].products)
    return result
