"""An upper bound on the Lipschitz constant, by the graph and by the product of all layers."""

from __future__ import annotations

import math

from genmeasure.estimate import Estimate
from genmeasure.lipschitz import log_lipschitz
from genmeasure.norms import spectral
from genmeasure.registry import measure
from genmeasure.spectral import operator_norm_upper
from genmeasure.subject import Subject
from genmeasure.symbolic import definable


def lipschitz_constant(subject: Subject) -> str | None:
    return definable(subject, log_lipschitz, "the Lipschitz constant")


@measure("lipschitz", index=("term",), needs=("input-norm",), defined=lipschitz_constant,
         source="bounds.md 5; measures.md 4")
def lipschitz(subject: Subject) -> dict[str, Estimate]:
    """log10 of an upper bound on the Lipschitz constant of the outputs, residual blocks by skip + product.

    `log10-graph` follows the forward pass: linear maps count with the certified upper side of their norm, BatchNorm
    folded into the layer before it, and branches that meet add up. `log10-product` multiplies the same norms of all
    layers as if they were a chain, `log10-reshaped-product` those of reshaped kernels, as published tables do: for a
    network with branches neither is a bound. A layer of zeros leaves its product out.
    """
    weights = [(x, subject.weight(x, fold=True)) for x in subject.layers]
    products = {"log10-product": [operator_norm_upper(x, w) for x, w in weights],
                "log10-reshaped-product": [spectral(w) for _, w in weights]}
    result = {name: Estimate(sum(map(math.log10, norms))) for name, norms in products.items() if all(norms)}
    constant = log_lipschitz(subject) / math.log(10)
    return result | ({"log10-graph": Estimate(constant)} if math.isfinite(constant) else {})
