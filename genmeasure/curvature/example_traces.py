"""The largest trace of the positive part of a single example's Hessian block, per layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genmeasure.curvature.draws import generator, rademacher
from genmeasure.curvature.forms import example_products, share
from genmeasure.curvature.gauss_newton import (
    convex_in_outputs,
    linear_layers,
    over_directions,
    untapped_squared_gradients,
    used_directions,
)
from genmeasure.curvature.lanczos import lanczos
from genmeasure.curvature.survey import output_hessian, survey
from genmeasure.curvature.taps import Taps, find_taps, squared_gradients
from genmeasure.data.batches import Batch
from genmeasure.errors import InputError
from genmeasure.estimate import Estimate
from genmeasure.layers import Layer
from genmeasure.risk import Risk

MOST_OUTPUTS = 2000
"""Numbers that an example's output may have: an exact trace takes a backward pass for each."""


@torch.no_grad()
def gauss_newton_traces(risk: Risk, taps: Taps | None) -> Tensor:
    """Tr G_ii of every example and layer [examples, layers].

    Of a loss that is not convex in the outputs, with the sizes of the output Hessian's eigenvalues. Where the outputs
    are too many to be told apart beforehand (tokens), by a backward pass for each of them; raises `InputError` for more
    than `MOST_OUTPUTS`.
    """
    def squares(batch: Batch, directions: Callable[[Tensor], Tensor]) -> Tensor:
        if taps is None:
            return untapped_squared_gradients(risk, batch, directions)
        return squared_gradients(risk, taps, batch, directions)

    def traces(batch: Batch) -> Tensor:
        targets, sizes = risk.place(batch).targets, []

        def directions(outputs: Tensor) -> Tensor:
            if outputs[0].numel() > MOST_OUTPUTS:
                raise InputError(f"{outputs[0].numel()} outputs came for an example, each of which takes a backward "
                                 f"pass; at most {MOST_OUTPUTS} are affordable, so leave the trace bounds out")
            values, basis = torch.linalg.eigh(output_hessian(risk, outputs.double(), targets).cpu())
            sizes.append(values.abs().T)
            return basis.permute(2, 0, 1).reshape(-1, *outputs.shape)
        found = squares(batch, directions).double().cpu()
        return (sizes[0][:, :, None] * found).sum(0)
    found = survey(risk)
    if found is None or not found.apart:
        return risk.engine.examples(traces, risk.batches)
    return over_directions(risk, found, found.sizes.abs(), used_directions(risk, found), squares, taps and taps.program)


@torch.no_grad()
def largest_positive_traces(risk: Risk, *, candidates: int, probes: int, steps: int, seed: int) -> dict[str, Estimate]:
    """max over examples of Tr H_ii+, by layer.

    Where outputs are piecewise linear in the layer's weights and the loss is convex, H_ii+ = G_ii: exact over all
    examples. Elsewhere by stochastic Lanczos quadrature of max(0, x): the `candidates` examples that have the largest
    Tr G_ii or the largest loss are compared by `probes` probes each, and that with the largest mean is drawn again, so
    that its estimate is not biased by having been chosen. It is then a trace that occurs, and the maximum where the
    candidates hold it.
    """
    taps = find_taps(risk) if risk.twice_differentiable else None
    exact = [linear and convex_in_outputs(risk) for linear in linear_layers(risk, taps)]
    traces = gauss_newton_traces(risk, taps)
    losses = torch.zeros(len(traces)) if all(exact) else risk.engine.examples(
        lambda batch: risk.losses({}, risk.place(batch)), risk.batches)
    found = {}
    for number, (layer, known) in enumerate(zip(risk.layers, exact, strict=True)):
        if known:
            found[layer.name] = Estimate(traces[:, number].max().item(), 0.0, risk.batches.size)
            continue
        half = min(max(1, candidates // 2), risk.batches.size)
        rows = torch.cat([column.topk(half).indices for column in (traces[:, number], losses)]).unique()
        draws = _drawn(risk, layer, taps, rows, probes, steps, (seed, number, 0))
        chosen = rows[draws.mean(1).argmax()][None]
        found[layer.name] = Estimate.from_draws(_drawn(risk, layer, taps, chosen, probes, steps, (seed, number, 1))[0])
    return found


def _drawn(risk: Risk, layer: Layer, taps: Taps | None, rows: Tensor, probes: int, steps: int,
           stream: tuple[int, ...]) -> Tensor:
    """z' H_ii+ z for `probes` probes z of each of the examples at `rows` (ascending), [rows, probes]."""
    size = risk.weights[layer.name].numel()

    def forms(batch: Batch) -> Tensor:
        values = []
        for part in batch.split(share(risk, steps * size)):
            signs = [rademacher((size,), generator("positive trace", *stream, int(i))) for i in part.rows]
            *_, last = lanczos(example_products(risk, layer, part, taps), torch.stack(signs).to(
                risk.weights[layer.name]), steps)
            nodes, vectors = last.cpu().ritz()
            values.append(size * (vectors[:, 0, :] ** 2 * nodes.clamp(min=0)).sum(1))
        return torch.cat(values)
    return risk.engine.examples(forms, risk.batches.gather(rows.repeat_interleave(probes))).reshape(len(rows), probes)
