"""Quadratic forms v' H_ii v and v' H_ii+ v of every example's own loss, one layer at a time, no cross-layer terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, jvp

from genmeasure.curvature.gauss_newton import CHUNK, along, vmap_examples
from genmeasure.curvature.higher_order import directional, written_out
from genmeasure.curvature.lanczos import Tridiagonal, lanczos
from genmeasure.curvature.padding import positions
from genmeasure.curvature.tangents import in_parts, second_derivatives
from genmeasure.curvature.taps import SHARE, Probe, Taps, example_operator
from genmeasure.data.batches import Batch
from genmeasure.layers import Layer
from genmeasure.risk import FORWARD, HESSIAN_PRODUCT, Risk

KRYLOV = 2**28
"""Numbers held at once by the vectors of all examples' own Lanczos runs."""


@torch.no_grad()
def hessian_forms(risk: Risk, vectors: Mapping[str, Tensor], taps: Taps | None = None) -> Tensor:
    """v_i' H_ii v_i for every example and every layer in `vectors`, [examples, layers].

    All layers at once by first-order tangents where the network allows it, else by double backward from each layer's
    output; without taps by nested forward mode, layer by layer.
    """
    if taps is None:
        layers = [x for x in risk.layers if x.name in vectors]
        return torch.stack([_forms_of_layer(risk, x, vectors[x.name]) for x in layers], 1)
    probes = {name: Probe(v) for name, v in vectors.items()}

    def forms(batch: Batch) -> Tensor:
        parts = in_parts(risk, taps, batch, len(vectors))
        found = [second_derivatives(risk, taps, part, probes, risk.losses_of)[1] for part in parts]
        return torch.cat(found)[positions(parts)]
    return risk.engine.examples(forms, risk.batches)


def _forms_of_layer(risk: Risk, layer: Layer, direction: Tensor) -> Tensor:
    scalar = torch.zeros((), device=risk.device, dtype=risk.dtype)

    def forms(batch: Batch) -> Tensor:
        batch = risk.place(batch)
        risk.spend(4 * FORWARD, len(batch))
        return directional(along(risk, layer, direction, batch, risk.losses), scalar)[1]
    return risk.engine.examples(forms, risk.batches)


def example_products(risk: Risk, layer: Layer, batch: Batch, taps: Taps | None = None) -> Callable[[Tensor], Tensor]:
    """The operator u [batch, d] -> H_ii(x) u_x of every example's own block and vector."""
    tapped = taps and example_operator(risk, taps, layer.name, batch, risk.losses_of)
    if tapped:
        return tapped
    batch, weight = risk.place(batch), risk.weights[layer.name]

    def product(example: Batch, vector: Tensor) -> Tensor:
        one = example.select(None)
        slope = grad(lambda w: risk.losses({layer.name: w}, one)[0])
        return jvp(slope, (weight,), (vector.reshape(weight.shape),))[1].reshape(-1)

    def products(vectors: Tensor) -> Tensor:
        risk.spend(HESSIAN_PRODUCT, len(batch))
        with written_out():
            return vmap_examples(product, batch, vectors, max(1, CHUNK // weight.numel()))
    return products


@dataclass(frozen=True)
class PositiveForms:
    """v' H_ii+ v per example, each [examples], float64: lower <= v' H+ v <= upper, and `value` between them.

    The sides hold for the operator as its products give it; rounding of the products (float32: about 1e-6 of
    |v|^2 |H|) is allowed for in the width.
    """

    value: Tensor
    lower: Tensor
    upper: Tensor

    @property
    def top(self) -> int:
        """The example with the largest value."""
        return int(self.value.argmax())


def share(risk: Risk, numbers: int = 0) -> int:
    """Examples at a time, as a double backward pass holds several times what a training step does.

    numbers: held for each example besides.
    """
    most = max(1, max(risk.batches.lengths) // SHARE)
    return min(most, max(1, KRYLOV // numbers)) if numbers else most


STAGES = (7, 15)
"""Lanczos steps after which examples that cannot be the maximum are dropped, before the last stage."""


@torch.no_grad()
def positive_forms(risk: Risk, layer: Layer, direction: Tensor, *, every: bool = False, steps: int, rtol: float,
                   taps: Taps | None = None) -> PositiveForms:
    """v' H_ii+ v, refined for every example that could attain the maximum, or for every example.

    One product per example gives the bracket max(0, v'Hv) <= v'H+v <= (v'Hv + |v||Hv|) / 2 (measures.md 9.2). Examples
    whose upper side is below the largest lower side cannot be the maximum; for the others the bracket is narrowed by
    Lanczos started at v, in stages, each of which drops more of them. The last stage ends when every bracket's width is
    at most `rtol` times its upper side, or after `steps` products. A displacement of zero gives zeros.
    """
    v = direction.reshape(-1)
    length = v.norm().double().cpu()
    if length == 0:
        zeros = torch.zeros(risk.batches.size, dtype=torch.float64)
        return PositiveForms(zeros, zeros, zeros)

    def bracket(batch: Batch) -> Tensor:
        parts = batch.split(share(risk, v.numel()))
        products = torch.cat([example_products(risk, layer, x, taps)(v.expand(len(x), -1)) for x in parts])
        form = (products @ v).double().cpu()
        return torch.stack([form, (form + length * products.norm(dim=1).double().cpu()) / 2], 1)

    def refined(batch: Batch, m: int) -> Tensor:
        parts = batch.split(share(risk, m * v.numel()))
        return torch.cat([_quadrature(example_products(risk, layer, x, taps), len(x), v, m, rtol) for x in parts])
    form, upper = risk.engine.examples(bracket, risk.batches).unbind(1)
    result = torch.stack([form.clamp(min=0), form.clamp(min=0), upper], 1)
    for stage in (*(s for s in STAGES if s < steps), steps):
        _, lower, upper = result.unbind(1)
        rows = every | (upper >= lower.max())
        rows &= upper - lower > rtol * upper
        if rows.any():
            part = risk.batches.gather(rows.nonzero().squeeze(1))
            result[rows] = risk.engine.examples(lambda b, m=stage: refined(b, m), part)
    return PositiveForms(*result.unbind(1))


ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-13}
"""What rounding of the products may move a side, relative to the operator's norm."""
CHECK_EVERY = 4
"""Lanczos steps between two looks at the bracket, whose small eigenproblems are not free."""


def _quadrature(product: Callable[[Tensor], Tensor], examples: int, v: Tensor, steps: int, rtol: float) -> Tensor:
    """Value, lower and upper side [examples, 3] of v' H+ v = (v' H v + v' |H| v) / 2."""
    products = lanczos(product, v.expand(examples, -1), steps)
    found = torch.full((examples, 3), torch.nan, dtype=torch.float64)
    for number, t in enumerate(products, 1):
        last = bool(t.exhausted.all()) or number == min(steps, v.numel())
        if number % CHECK_EVERY == CHECK_EVERY - 1 or last:  # odd numbers bring the bracket a new node
            t = t.cpu()
            theta, vectors = t.ritz()
            mean = t.diagonal[:, 0]
            value = (vectors[:, 0, :] ** 2 * theta.clamp(min=0)).sum(1)
            slack = torch.tensor([-1.0, 1.0]) * ROUNDING[v.dtype]
            low, high = (((mean + side) / 2 + s * theta.abs().max(1).values).clamp(min=0)
                         for side, s in zip(absolute_value_bracket(t), slack, strict=True))
            fresh = found[:, 0].isnan()  # where an example ends does not depend on the others of its batch
            fresh &= last | (high - low <= rtol * high)
            found[fresh] = torch.stack([value.clamp(low, high), low, high], 1)[fresh]
            if not found[:, 0].isnan().any():
                break
    return v.norm().double().cpu() ** 2 * found


def absolute_value_bracket(t: Tridiagonal) -> tuple[Tensor, Tensor]:
    """Lower and upper side [b] of q' |H| q for unit vectors q, after Lanczos on H started at q.

    q' |H| q is the integral of sqrt(x) over the spectral measure of H^2. All even derivatives of the square root are
    negative and all odd ones positive, so Gauss quadrature is an upper bound and Gauss-Radau quadrature with a node at
    0 a lower bound, both monotone in the number of nodes (Golub & Meurant 2010, chapter 6). m steps on H give the
    moments of H^2 up to order m, hence (m + 1) // 2 nodes, found by Lanczos on the square of the tridiagonal matrix;
    its last coupling to the unseen direction is needed for the highest moment, that direction's diagonal is not.
    """
    theta, vectors = t.ritz()
    exact = (vectors[:, 0, :] ** 2 * theta.abs()).sum(1)
    zero = torch.zeros_like(exact)[:, None]
    extended = Tridiagonal(torch.cat([t.diagonal, zero], 1), torch.cat([t.off_diagonal, zero], 1), t.exhausted).matrix()
    first = torch.zeros_like(extended[:, 0])
    first[:, 0] = 1
    *_, squared = lanczos(lambda q: (extended @ (extended @ q[:, :, None]))[:, :, 0], first,
                          (t.diagonal.shape[1] + 1) // 2)
    nodes, directions = squared.ritz()
    upper = (directions[:, 0, :] ** 2 * nodes.clamp(min=0).sqrt()).sum(1)
    lower = torch.minimum(torch.maximum(_radau(squared), t.diagonal[:, 0].abs()), upper)
    lower = torch.where(squared.exhausted, upper, lower)
    return torch.where(t.exhausted, exact, lower), torch.where(t.exhausted, exact, upper)


def _radau(t: Tridiagonal) -> Tensor:
    """Gauss-Radau quadrature of sqrt with a node at 0 in place of the last free one."""
    free = t.diagonal.shape[1] - 1
    if free == 0:
        return torch.zeros_like(t.diagonal[:, 0])
    inner = Tridiagonal(t.diagonal[:, :free], t.off_diagonal[:, :free], t.exhausted)
    last = torch.zeros_like(inner.diagonal)
    last[:, -1] = inner.off_diagonal[:, -1] ** 2
    shift = torch.linalg.lstsq(inner.matrix(), last[:, :, None]).solution[:, -1, 0]
    ended = Tridiagonal(torch.cat([inner.diagonal, shift[:, None]], 1),
                        torch.cat([inner.off_diagonal, torch.zeros_like(shift)[:, None]], 1), t.exhausted)
    nodes, directions = ended.ritz()
    return (directions[:, 0, :] ** 2 * nodes.clamp(min=0).sqrt()).sum(1)
