"""Products with the Hessian and with the Gauss-Newton matrix."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import jvp

from genmeasure.curvature.draws import generator
from genmeasure.curvature.gauss_newton import by_count
from genmeasure.curvature.sampling import inclusion_probabilities
from genmeasure.curvature.survey import active_examples, survey
from genmeasure.data.batches import Batch
from genmeasure.errors import unknown
from genmeasure.layers import Layer
from genmeasure.risk import FORWARD, GRADIENT, HESSIAN_PRODUCT, Risk, Weights

WORTH = 3
"""A sample of the examples pays where it leaves out all but one of this many."""


def batch_hessian_product(risk: Risk, batch: Batch, vectors: Weights,
                          losses: Callable | None = None) -> dict[str, Tensor]:
    """H v for the sum of the losses of a batch, by double backward.

    vectors: directions by layer. Only the given layers take part, so a single layer gives its diagonal block H_ii v_i,
    and all layers together sum_j H_ij v_j with the cross-layer blocks. losses: (weights, batch) -> [batch], by default
    the losses of `risk`; `risk.residual_losses` gives (H - G) v. Weights that the losses do not use give zeros.
    """
    return batch_hessian_products(risk, batch, [vectors], losses=losses)[0]


def batch_hessian_products(risk: Risk, batch: Batch, several: Sequence[Weights], times: Tensor | None = None,
                           losses: Callable | None = None) -> list[dict[str, Tensor]]:
    """H v for several v in the same layers, which share the gradient; see `batch_hessian_product`.

    times: how many times each example counts [batch], once by default.
    """
    risk.check_precision()
    batch = risk.place(batch)
    risk.spend(GRADIENT + (HESSIAN_PRODUCT - GRADIENT) * len(several), len(batch))
    point = {k: risk.weights[k].clone().requires_grad_() for k in several[0]}
    with torch.enable_grad(), risk.saved():
        values = (losses or risk.losses)(point, batch)
        total = (values if times is None else values * times.to(values)).sum()
        slopes = gradient(total, point, create_graph=True)
        along = [sum((g * v[k]).sum() for k, g in zip(point, slopes, strict=True)) for v in several]
        products = [gradient(a, point, retain_graph=number < len(along)) for number, a in enumerate(along, 1)]
    return [dict(zip(point, p, strict=True)) for p in products]


def batch_gauss_newton_product(risk: Risk, batch: Batch, vectors: Weights,
                               times: Tensor | None = None) -> dict[str, Tensor]:
    """G v = sum over examples of J' A J v for the sum of the losses of a batch.

    J is the Jacobian of an example's outputs, A the Hessian of its loss in them: one Jacobian-vector product, one
    Hessian-vector product of the loss in the outputs (A itself, classes squared, is never made) and one backward pass
    (Schraudolph 2002). vectors and times as for `batch_hessian_products`. The Jacobian-vector product is taken in
    forward mode, or by two backward passes where an operation has none.
    """
    risk.check_precision()
    batch = risk.place(batch)
    point = {k: risk.weights[k].clone().requires_grad_() for k in vectors}
    try:
        with torch.no_grad():
            moved = jvp(lambda w: risk.outputs(w, batch), ({k: risk.weights[k] for k in point},), (dict(vectors),))[1]
        risk.spend(2 * FORWARD + GRADIENT, len(batch))
    except RuntimeError:  # NotImplementedError of an operation, or a function of the user's without a jvp
        moved = None
        risk.spend(HESSIAN_PRODUCT, len(batch))
    with torch.enable_grad(), risk.saved():
        outputs = risk.outputs(point, batch)
        moved = reverse_moved(outputs, point, vectors) if moved is None else moved
        bent = output_hessian_product(risk, outputs, batch.targets, moved)
        bent = bent if times is None else bent * times.to(bent).reshape(-1, *[1] * (bent.ndim - 1))
        products = gradient((outputs * bent).sum(), point)
    return dict(zip(point, products, strict=True))


def reverse_moved(outputs: Tensor, point: dict[str, Tensor], vectors: Weights) -> Tensor:
    """J v [batch, ...]: the derivative with respect to u of <J' u, v>, which is linear in u."""
    u = torch.zeros_like(outputs, requires_grad=True)
    pulled = gradient((outputs * u).sum(), point, create_graph=True)
    along = sum((g * vectors[k]).sum() for k, g in zip(point, pulled, strict=True))
    return gradient(along, {"u": u}, retain_graph=True)[0]


def output_hessian_product(risk: Risk, outputs: Tensor, targets: Tensor, moved: Tensor) -> Tensor:
    """A m of every example, for outputs and m [batch, ...]."""
    here = outputs.detach().requires_grad_()
    (slope,) = gradient(risk.scale * risk.loss(here, targets).sum(), {"outputs": here}, create_graph=True)
    return gradient((slope * moved.detach()).sum(), {"outputs": here})[0]


def gradient(value: Tensor, point: dict[str, Tensor], **how: bool) -> tuple[Tensor, ...]:
    """The gradient of a scalar with respect to every tensor of `point`; zero where it does not depend on it."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(w) for w in point.values())
    return torch.autograd.grad(value, list(point.values()), materialize_grads=True, **how)


def batch_gauss_newton_products(risk: Risk, batch: Batch, several: Sequence[Weights],
                                times: Tensor | None = None) -> list[dict[str, Tensor]]:
    """G v for several v."""
    return [batch_gauss_newton_product(risk, batch, vectors, times) for vectors in several]


BATCH_PRODUCTS = {"hessian": batch_hessian_products, "gauss-newton": batch_gauss_newton_products}


def _mean_product(batch_product: Callable, risk: Risk, vectors: Weights) -> dict[str, Tensor]:
    total = risk.engine.sum(lambda batch: batch_product(risk, batch, vectors), risk.batches)
    return {k: h / risk.batches.size for k, h in total.items()}


def hessian_product(risk: Risk, vectors: Weights) -> dict[str, Tensor]:
    """H v for the mean loss over the data set."""
    return _mean_product(batch_hessian_product, risk, vectors)


def gauss_newton_product(risk: Risk, vectors: Weights) -> dict[str, Tensor]:
    """G v for the mean loss over the data set; see `batch_gauss_newton_product`."""
    return _mean_product(batch_gauss_newton_product, risk, vectors)


@dataclass(frozen=True)
class Operator:
    """A curvature matrix of the mean loss in the weights of some layers, as a function of flat vectors [size].

    matrix: `hessian` or `gauss-newton`. One layer alone gives its diagonal block. times: how many times each example
    counts [examples]; by default once, and not at all where the loss is flat in the outputs (`active_examples`).
    """

    risk: Risk
    layers: Sequence[Layer]
    matrix: str = "hessian"
    times: Tensor | None = None

    def __post_init__(self):
        if self.matrix not in BATCH_PRODUCTS:
            raise unknown("matrix", self.matrix, BATCH_PRODUCTS)

    @property
    def like(self) -> Tensor:
        """A weight, for its dtype and device."""
        return self.risk.weights[self.layers[0].name]

    @property
    def sizes(self) -> list[int]:
        return [self.risk.weights[x.name].numel() for x in self.layers]

    @property
    def size(self) -> int:
        return sum(self.sizes)

    @functools.cached_property
    def _taken(self) -> Tensor | None:
        """Whether an example takes part [examples]; None where all do."""
        return active_examples(self.risk) if self.times is None else self.times > 0

    def _batches(self) -> Iterator[Batch]:
        yield from self.risk.batches if self._taken is None else by_count(self.risk.batches, self._taken.long())

    def sampled(self, count: int, seed: int) -> Operator | None:
        """The same from about `count` examples in place of all, right in the mean; None where that is no saving.

        Drawn with probability proportional to size and slope of the loss in the outputs, and counted so much the more.
        """
        found = survey(self.risk)
        if found is None or self._taken.sum() < WORTH * count:
            return None
        chances = inclusion_probabilities(found.sizes.abs().sum(1) + found.slopes, count)
        drawn = torch.rand(len(chances), generator=generator("operator", seed), dtype=torch.float64) < chances
        return replace(self, times=torch.where(drawn, 1 / chances, 0.0))

    def __call__(self, vectors: Tensor) -> Tensor:
        """vectors: [size], or several [m, size]."""
        several = [{x.name: piece.reshape(self.risk.weights[x.name].shape)
                    for x, piece in zip(self.layers, v.split(self.sizes), strict=True)}
                   for v in vectors.reshape(-1, self.size)]

        def products(batch: Batch) -> dict[str, Tensor]:
            times = None if self.times is None else self.times[batch.rows]
            found = BATCH_PRODUCTS[self.matrix](self.risk, batch, several, times)
            return {x.name: torch.stack([f[x.name].reshape(-1) for f in found]) for x in self.layers}
        found = self.risk.engine.sum(products, self._batches())
        return (torch.cat([found[x.name] for x in self.layers], 1) / self.risk.batches.size).reshape(vectors.shape)
