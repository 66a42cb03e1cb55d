"""Products with the Hessian and with the Gauss-Newton matrix."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jvp

from genmeasure.curvature.survey import active_examples
from genmeasure.data.batches import Batch
from genmeasure.errors import unknown
from genmeasure.layers import Layer
from genmeasure.risk import FORWARD, GRADIENT, HESSIAN_PRODUCT, Risk, Weights


def batch_hessian_product(risk: Risk, batch: Batch, vectors: Weights,
                          losses: Callable | None = None) -> dict[str, Tensor]:
    """H v for the sum of the losses of a batch, by double backward.

    vectors: directions by layer. Only the given layers take part, so a single layer gives its diagonal block H_ii v_i,
    and all layers together sum_j H_ij v_j with the cross-layer blocks. losses: (weights, batch) -> [batch], by default
    the losses of `risk`; `risk.residual_losses` gives (H - G) v. Weights that the losses do not use give zeros.
    """
    batch = risk.place(batch)
    risk.spend(HESSIAN_PRODUCT, len(batch))
    point = {k: risk.weights[k].clone().requires_grad_() for k in vectors}
    with torch.enable_grad():
        total = (losses or risk.losses)(point, batch).sum()
        slopes = gradient(total, point, create_graph=True)
        products = gradient(sum((g * vectors[k]).sum() for k, g in zip(point, slopes, strict=True)), point)
    return dict(zip(point, products, strict=True))


def batch_gauss_newton_product(risk: Risk, batch: Batch, vectors: Weights) -> dict[str, Tensor]:
    """G v = sum over examples of J' A J v for the sum of the losses of a batch.

    J is the Jacobian of an example's outputs, A the Hessian of its loss in them: one Jacobian-vector product, one
    Hessian-vector product of the loss in the outputs (A itself, classes squared, is never made) and one backward pass
    (Schraudolph 2002). vectors as for `batch_hessian_product`. The Jacobian-vector product is taken in forward mode, or
    by two backward passes where an operation has none.
    """
    batch = risk.place(batch)
    point = {k: risk.weights[k].clone().requires_grad_() for k in vectors}
    try:
        with torch.no_grad():
            moved = jvp(lambda w: risk.outputs(w, batch), ({k: risk.weights[k] for k in point},), (dict(vectors),))[1]
        risk.spend(2 * FORWARD + GRADIENT, len(batch))
    except RuntimeError:  # NotImplementedError of an operation, or a function of the user's without a jvp
        moved = None
        risk.spend(HESSIAN_PRODUCT, len(batch))
    with torch.enable_grad():
        outputs = risk.outputs(point, batch)
        moved = reverse_moved(outputs, point, vectors) if moved is None else moved
        bent = output_hessian_product(risk, outputs, batch.targets, moved)
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


BATCH_PRODUCTS = {"hessian": batch_hessian_product, "gauss-newton": batch_gauss_newton_product}


def _mean_product(batch_product: Callable, risk: Risk, vectors: Weights,
                  batches: Iterable[Batch] | None = None) -> dict[str, Tensor]:
    total = risk.engine.sum(lambda batch: batch_product(risk, batch, vectors), batches or risk.batches)
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

    matrix: `hessian` or `gauss-newton`. One layer alone gives its diagonal block. Examples whose loss is flat in their
    outputs are left out (`active_examples`).
    """

    risk: Risk
    layers: Sequence[Layer]
    matrix: str = "hessian"

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
    def _active(self) -> Tensor | None:
        return active_examples(self.risk)

    def _batches(self) -> Iterator[Batch]:
        for batch in self.risk.batches:
            rows = slice(None) if self._active is None else self._active[batch.rows].nonzero().squeeze(1)
            part = batch.select(rows)
            if len(part):
                yield part

    def __call__(self, vector: Tensor) -> Tensor:
        pieces = {x.name: piece.reshape(self.risk.weights[x.name].shape)
                  for x, piece in zip(self.layers, vector.split(self.sizes), strict=True)}
        found = _mean_product(BATCH_PRODUCTS[self.matrix], self.risk, pieces, self._batches())
        return torch.cat([found[x.name].reshape(-1) for x in self.layers])
