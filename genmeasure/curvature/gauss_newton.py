"""Gauss-Newton blocks G_ii = J_i' A J_i, and when they are the Hessian blocks.

J_i is the Jacobian of an example's outputs with respect to the weights of layer i, A the Hessian of its loss with
respect to its outputs. Where the outputs are piecewise linear in each weight tensor alone (every ReLU network),
H_ii = G_ii almost everywhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

from genmeasure.curvature.draws import generator
from genmeasure.curvature.higher_order import directional, first_derivative
from genmeasure.curvature.padding import cut
from genmeasure.curvature.piecewise import structure
from genmeasure.curvature.program import Program
from genmeasure.curvature.survey import Survey, negligible, output_hessian, survey
from genmeasure.curvature.tangents import second_derivatives
from genmeasure.curvature.taps import Probe, Taps, find_taps, slopes_along
from genmeasure.data.batches import Batch, Batches, gather, map_tensors
from genmeasure.layers import Layer
from genmeasure.risk import FORWARD, GRADIENT, Risk

CHUNK = 2**26
"""Numbers held at once by per-example gradients."""
LEAST = 4
"""Batches of examples with the same number of directions may be smaller than the data's by this factor."""
WINDOW = 8
"""Batches that are sorted at a time."""


def along(risk: Risk, layer: Layer, direction: Tensor, batch: Batch, function: Callable) -> Callable[[Tensor], Tensor]:
    """a -> function({layer: W + a * direction}, batch)."""
    return lambda a: function({layer.name: risk.weights[layer.name] + a * direction}, batch)


@torch.no_grad()
def linear_layers(risk: Risk, taps: Taps | None = None, seed: int = 0, examples: int = 4) -> tuple[bool, ...]:
    """For every layer whether the outputs are piecewise linear in its weights alone, so that H_ii = G_ii.

    Read off the operations of a forward pass where these are known. Else decided by the second derivative of a few
    examples' outputs, in a random combination, along one random direction per layer: zero where they are, and almost
    surely not zero otherwise.
    """
    if structure(risk).linear:
        return (True,) * len(risk.layers)
    batch = risk.place(cut(risk, next(iter(risk.batches)).select(slice(examples))))
    draws = generator("linear layers", seed)
    vectors = {k: torch.randn(w.shape, generator=draws, dtype=torch.float64).to(w) for k, w in risk.weights.items()}
    weights = torch.randn(risk.outputs({}, batch).shape, generator=draws, dtype=torch.float64)

    def combined(outputs: Tensor, _: Batch) -> Tensor:
        return (outputs * weights.to(outputs)).flatten(1).sum(1)
    if taps is not None:
        found = second_derivatives(risk, taps, batch, {k: Probe(v) for k, v in vectors.items()}, combined)
        return tuple((second.abs().max() <= 1e-5 * slope.abs().max()).item() for slope, second in
                     zip(*(f.T for f in found), strict=True))
    scalar = torch.zeros((), device=risk.device, dtype=risk.dtype)
    linear = []
    for layer in risk.layers:
        risk.spend(4 * FORWARD, len(batch))

        def value(a: Tensor, layer: Layer = layer) -> Tensor:
            return combined(along(risk, layer, vectors[layer.name], batch, risk.outputs)(a), batch)
        slope, second = directional(value, scalar)
        linear.append(bool(second.abs().max() <= 1e-5 * slope.abs().max()))
    return tuple(linear)


def piecewise_linear(risk: Risk) -> bool:
    """Whether the outputs are piecewise linear in each layer's weights alone."""
    return structure(risk).linear or all(linear_layers(risk, find_taps(risk)))


@torch.no_grad()
def convex_in_outputs(risk: Risk) -> bool:
    """Whether A has no negative eigenvalue on any example, so that G_ii is positive semidefinite."""
    if risk.loss.softmax_rows is not None:
        return True

    def least(batch: Batch) -> Tensor:
        batch = risk.place(batch)
        risk.spend(FORWARD, len(batch))
        values = torch.linalg.eigvalsh(output_hessian(risk, risk.outputs({}, batch), batch.targets))
        return values[:, 0] + 1e-5 * values.abs().max(1).values
    return bool((risk.engine.examples(least, risk.batches) >= 0).all())


@torch.no_grad()
def gauss_newton_forms(risk: Risk, vectors: Mapping[str, Tensor], taps: Taps | None = None) -> Tensor:
    """v_i' G_ii v_i for every example and layer, [examples, layers], for v_i by layer.

    By one backward pass through activations for every direction of an example's outputs in which the loss curves, all
    layers at once (`over_directions`), or where directions are many or weights are not used linearly, by one
    Jacobian-vector product for each layer.
    """
    found = survey(risk) if taps is not None else None
    if found is None or not found.apart:
        return _forms_by_layer(risk, vectors)
    counts = used_directions(risk, found)
    if counts.sum() > 2 * len(risk.layers) * risk.batches.size:
        return _forms_by_layer(risk, vectors)  # a direction costs as much as a product, or less

    def squares(batch: Batch, directions: Callable[[Tensor], Tensor]) -> Tensor:
        return slopes_along(risk, taps, batch, vectors, directions)[0].square()
    return over_directions(risk, found, found.sizes, counts, squares, taps.program)


def used_directions(risk: Risk, found: Survey) -> Tensor:
    """How many directions of each example are not negligible, [examples]."""
    return (~negligible(found.sizes.abs(), risk.dtype)).sum(1)


@torch.no_grad()
def over_directions(risk: Risk, found: Survey, sizes: Tensor, counts: Tensor, measured: Callable,
                    program: Program | None = None) -> Tensor:
    """sum over an example's directions k of sizes [examples, k] times what is measured there, [examples, layers].

    counts: how many directions to take of each example [examples], the largest first (`used_directions`). measured:
    (batch, outputs -> directions [D, b, outputs]) -> [D, b, layers]. program: what `measured` runs.
    """
    which = sizes.abs().argsort(dim=1, descending=True)

    def summed(batch: Batch) -> Tensor:
        used = which[batch.rows, :counts[batch.rows].max()].T
        rows = batch.rows.expand_as(used)
        values = measured(batch, lambda f: found.ends(risk, batch, f, rows, used)).cpu().double()
        weights = torch.where(torch.arange(len(used))[:, None] < counts[batch.rows], sizes[rows, used], 0)
        return torch.cat([batch.rows[:, None], (weights[:, :, None] * values).sum(0)], 1)
    result = torch.zeros(risk.batches.size, len(risk.layers), dtype=torch.float64)
    batches = by_count(risk.batches, counts, program and program.at_once)
    table = risk.engine.examples(summed, batches, core_each=program is not None and program.core_each)
    result[table[:, 0].long()] = table[:, 1:]
    return result


def by_count(batches: Batches, counts: Tensor, at_once: int | None = None) -> Iterator[Batch]:
    """The examples with a positive count, in batches of examples whose counts are alike; `rows` are their own.

    Sorted within `WINDOW` batches at a time, as data may not fit into memory.
    """
    limit, rows = max(batches.lengths), counts.nonzero().squeeze(1)
    most, least = min(limit, at_once or limit), max(1, limit // LEAST)
    source = iter(batches)
    while window := list(itertools.islice(source, WINDOW)):
        for batch in gather(window, rows, WINDOW * limit):
            mine = rows[batch.rows]
            order = counts[mine].argsort(descending=True)
            batch = replace(batch, rows=mine).select(order)
            for part in of_like_counts(counts[batch.rows], most, min(most, least)):
                yield batch.select(part)


def of_like_counts(counts: Tensor, most: int, least: int) -> Iterator[slice]:
    """Slices of falling counts [n], of at most `most` and at least `least` where that many are left.

    A batch ends where a count ends, as every example of it takes as many passes as the first.
    """
    start = 0
    while start < len(counts):
        ends = start + least + counts[start + least - 1:start + most].diff().nonzero().squeeze(1)
        end = int(ends[0]) if len(ends) else start + most
        yield slice(start, end)
        start = end


def _forms_by_layer(risk: Risk, vectors: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([_forms_of_layer(risk, x, vectors[x.name]) for x in risk.layers], 1)


def _forms_of_layer(risk: Risk, layer: Layer, direction: Tensor) -> Tensor:
    """v' G_ii v of one layer, [examples]: the second derivative of the loss along the outputs' first one."""
    scalar = torch.zeros((), device=risk.device, dtype=risk.dtype)

    def forms(batch: Batch) -> Tensor:
        batch = risk.place(batch)
        risk.spend(2 * FORWARD, len(batch))
        outputs, moved = first_derivative(along(risk, layer, direction, batch, risk.outputs), scalar)

        def losses(a: Tensor) -> Tensor:
            return risk.scale * risk.loss(outputs + a * moved, batch.targets)
        return directional(losses, scalar)[1]
    return risk.engine.examples(forms, risk.batches).double()


@torch.no_grad()
def untapped_squared_gradients(risk: Risk, batch: Batch, directions: Callable[[Tensor], Tensor]) -> Tensor:
    """|d(u . f(x)) / dW_i|^2 [D, batch, layers] as `taps.squared_gradients`, for weights used in any way."""
    batch = risk.place(batch)
    ends = directions(risk.outputs({}, batch))
    risk.spend(FORWARD + (GRADIENT - FORWARD) * len(ends), len(batch))

    def squared_norms(example: Batch, each: Tensor) -> Tensor:
        one = example.select(None)
        _, pull = vjp(lambda point: risk.outputs(point, one), dict(risk.weights))
        (slopes,) = zip(*(pull(u[None]) for u in each), strict=True)
        return torch.stack([torch.stack([s[x.name].square().sum() for x in risk.layers]) for s in slopes])

    chunk = max(1, CHUNK // sum(w.numel() for w in risk.weights.values()))
    return vmap_examples(squared_norms, batch, ends.to(risk.weights[risk.layers[0].name]).transpose(0, 1),
                         chunk).transpose(0, 1)


def vmap_examples(function: Callable, batch: Batch, tensors: Tensor, chunk: int) -> Tensor:
    """`function(example, its row of tensors)` for every example, `chunk` of them at once.

    One after another where the model decides by the values of its inputs, as transformers does by its masks.
    """
    def one(inputs: Any, targets: Tensor, row: Tensor) -> Tensor:
        return function(Batch(inputs, targets, index=batch.index), row)
    try:
        return vmap(one, chunk_size=chunk)(batch.inputs, batch.targets, tensors)
    except RuntimeError as error:
        if "data-dependent control flow" not in str(error):
            raise
        rows = [one(map_tensors(batch.inputs, lambda t, i=i: t[i]), batch.targets[i], tensors[i])
                for i in range(len(batch))]
        return torch.stack(rows)
