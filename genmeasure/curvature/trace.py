"""Traces of the diagonal blocks H_ii of the mean loss, per layer and in total."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genmeasure.curvature.draws import batch_generator, rademacher
from genmeasure.curvature.gauss_newton import gauss_newton_traces, linear_layers
from genmeasure.curvature.products import batch_hessian_product
from genmeasure.data.batches import Batch
from genmeasure.engine import progress
from genmeasure.errors import unknown
from genmeasure.estimate import Estimate, until_precise
from genmeasure.risk import Risk

ROUTES = ("gauss-newton", "split", "hutchinson")
EXACT_OUTPUTS = 32
"""Up to this many outputs, one gradient per output (exact) is taken instead of random signs."""


@dataclass(frozen=True)
class Traces:
    """Tr H_ii [layers] of the mean loss, the covariance [layers, layers] of the estimates, and how they were got."""

    value: Tensor
    covariance: Tensor
    passes: int
    route: str

    def estimate(self, weights: Tensor | None = None) -> Estimate:
        """The sum over layers, weighted by `weights` [layers] if given; correlations are accounted for."""
        w = torch.ones_like(self.value) if weights is None else weights
        return Estimate((w @ self.value).item(), (w @ self.covariance @ w).clamp(min=0).sqrt().item(), self.passes)


def hutchinson(risk: Risk, batch: Batch, probes: dict[str, Tensor], losses: Callable | None = None) -> Tensor:
    """z_i' (H z)_i for the sum of a batch's losses, [layers]; its expectation over Rademacher z is Tr H_ii."""
    products = batch_hessian_product(risk, batch, probes, losses)
    return torch.stack([(products[k] * z).double().sum() for k, z in probes.items()])


def block_traces(risk: Risk, *, route: str, rtol: float, layer_rtol: float, atol: float, max_passes: int,
                 seed: int) -> Traces:
    """Tr H_ii for every layer.

    route `gauss-newton`: Tr G_ii, one gradient per output (exact up to `EXACT_OUTPUTS` outputs) or one gradient with
    random signs per pass; that is Tr H_ii where the network is piecewise linear in each weight tensor. `split`: the
    same plus Rademacher probes of the residual H - G in the layers where it is not, for smooth networks. `hutchinson`:
    Rademacher probes of H, for any network and loss. `auto`: `gauss-newton` where the network is found piecewise
    linear, else `split`. Draws are fresh for every batch and pass, and end when the total reaches a standard error of
    `max(atol, rtol * |value|)` and every layer one of `max(atol, layer_rtol * |value|)`.
    """
    linear = linear_layers(risk) if route in ("auto", "split") else (False,) * len(risk.layers)
    if route == "auto":
        route = "gauss-newton" if all(linear) else "split"
    if route not in ROUTES:
        raise unknown("route", route, ["auto", *ROUTES])
    exact: dict[int, Tensor] = {}

    def gauss_newton(batch: Batch, generator: torch.Generator) -> Tensor:
        if outputs > EXACT_OUTPUTS:
            return gauss_newton_traces(risk, batch, rademacher((len(batch), outputs), generator)).double().sum(0)
        if batch.index not in exact:
            exact[batch.index] = gauss_newton_traces(risk, batch).double().sum(0)
        return exact[batch.index]

    def draw(number: int) -> Tensor:
        def one(batch: Batch) -> Tensor:
            generator = batch_generator("trace", seed, number, batch)
            total = torch.zeros(len(risk.layers), dtype=torch.float64, device=risk.device)
            if route != "hutchinson":
                total += gauss_newton(batch, generator)
            if route != "gauss-newton" and curved:
                weights = {x.name: risk.weights[x.name] for x in curved}
                probes = {k: rademacher(tuple(w.shape), generator).to(w) for k, w in weights.items()}
                total[rows] += hutchinson(risk, batch, probes, risk.residual_losses if route == "split" else None)
            return total
        return risk.engine.batch_sums(one, risk.batches)
    layers, outputs = len(risk.layers), output_count(risk)
    rows = [i for i, flat in enumerate(linear) if not flat]
    curved = [risk.layers[i] for i in rows]
    if route == "gauss-newton" and outputs <= EXACT_OUTPUTS:
        value = draw(0).sum(0) / risk.batches.size
        return Traces(value, torch.zeros(layers, layers, dtype=torch.float64), risk.batches.size, route)
    watch = torch.cat([torch.eye(layers), torch.ones(1, layers)])
    tolerance = torch.tensor([layer_rtol] * layers + [rtol], dtype=torch.float64)
    mean = until_precise(draw, risk.batches.size, rtol=tolerance, atol=atol, watch=watch,
                         numbers=progress(range(max(2, max_passes)), "trace", max_passes))
    return Traces(mean.value, mean.covariance, mean.passes, route)


@torch.no_grad()
def output_count(risk: Risk) -> int:
    """The number of outputs of the model."""
    one = risk.place(next(iter(risk.batches)).select(slice(1)))
    return risk.outputs({}, one).shape[-1]
