"""Per-example gradients and directional derivatives of all layers at once, from what flows in and out of each layer.

A layer that maps its input x to W x gives away everything about its weight: with delta the gradient of some function
with respect to its output, the gradient with respect to W is delta x', and the derivative along a direction V is
<delta, V x>. So one forward pass that taps x, and one backward pass through activations alone, serve all layers and
all examples, without a gradient of any weight.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from genmeasure.curvature.calls import (
    Back,
    Call,
    Hear,
    Layout,
    Meet,
    batch_norm,
    linear_call,
    memory_order,
    weight_key,
)
from genmeasure.curvature.program import Program, find_program
from genmeasure.data.batches import Batch
from genmeasure.matrix_product import attention_function, linear
from genmeasure.risk import FORWARD, GRADIENT, Risk

log = logging.getLogger("genmeasure")

CHUNK = 2**22
"""Numbers held at once by per-example gradients of one layer."""

AGREEMENT = 2e-3
"""Of a layer's largest squared gradient: float32 rounding stays far below it (1e-6), a use that is missed does not."""
SHARE = 4
"""Second derivatives take this share of a batch at a time: a double backward pass holds several times as much."""


class _Tapping(TorchFunctionMode):
    """Hands every linear operation on a known weight to `tap`, which gives the output to go on with."""

    def __init__(self, risk: Risk, tap: Callable[[str, Call, Tensor], Tensor]):
        super().__init__()
        self.names = {weight_key(w): name for name, w in risk.weights.items()}
        self.tap = tap

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return attention_function(*args, **kwargs)
        if func is F.batch_norm:
            return batch_norm(*args, **kwargs)
        output = (linear if func is F.linear else func)(*args, **kwargs)
        call = linear_call(func, args, kwargs)
        name = call and self.names.get(weight_key(call.weight))
        return output if name is None else self.tap(name, call, output)


@contextlib.contextmanager
def _tapped(risk: Risk, tap: Callable[[str, Call, Tensor], Tensor]) -> Iterator[Tensor]:
    """Calls `tap` for every use of a weight; every output handed on depends on the anchor that is yielded."""
    anchor = torch.zeros((), device=risk.device, dtype=risk.dtype, requires_grad=True)

    def anchored(name: str, call: Call, output: Tensor) -> Tensor:
        return tap(name, call, output if output.requires_grad else output + anchor)
    with torch.enable_grad(), _Tapping(risk, anchored):
        yield anchor


@dataclass(frozen=True)
class Taps:
    """The uses of weights in one forward pass, in their order, and every layer's numbers of outputs and inputs.

    program: what runs instead of the network, good for the weights as they are.
    """

    layouts: tuple[Layout, ...]
    features: Mapping[str, tuple[int, int]]
    program: Program | None = field(default=None, compare=False)

    def behind(self, name: str) -> float:
        """The part of the network that comes behind a layer's input, as far as counting uses tells."""
        uses = [use for use, layout in enumerate(self.layouts) if layout.layer == name]
        return 1 - uses[0] / len(self.layouts) if uses else 0.0

    def listen(self, risk: Risk, batch: Batch, hear: Hear, meet: Meet = lambda *_: None) -> tuple[Tensor, Back]:
        """Outputs of a forward pass, in which a program lets every use `meet`, and the backward pass, in which every
        use is let `hear`."""
        if self.program is not None:
            return self.program.listen(batch, hear, meet)
        count = iter(range(len(self.layouts)))

        def tap(name: str, call: Call, output: Tensor) -> Tensor:
            use = next(count)
            order = memory_order(call)
            if order is not None and call.input.requires_grad:
                call.input.register_hook(lambda slope: slope.contiguous(memory_format=order))
            call = replace(call, input=call.input.detach())

            def heard(delta: Tensor) -> Tensor:
                delta = delta if order is None else delta.contiguous(memory_format=order)
                hear(use, call, delta.detach())
                return delta
            output.register_hook(heard)
            return output
        with _tapped(risk, tap) as anchor:
            outputs = risk.outputs({}, batch)

        def back(direction: Tensor, last: bool) -> None:
            torch.autograd.grad(outputs, anchor, direction, retain_graph=not last, allow_unused=True)
        return outputs.detach(), back


def find_taps(risk: Risk) -> Taps | None:
    """How the weights are used, or None where some use is not one of the known linear operations.

    Found by running three examples and following each one's gradient; the per-example gradients that come of it are
    checked against automatic differentiation.
    """
    risk.check_precision()
    first = next(iter(risk.batches))
    batch = risk.place(first.select(torch.arange(3) % len(first)))
    names, calls, deltas, features = [], [], [], {}

    def tap(name: str, call: Call, output: Tensor) -> Tensor:
        use, axis = len(names), 1 if call.convolution else -1
        features[name] = output.shape[axis], call.input.shape[axis]
        names.append(name)
        calls.append(call)
        output.register_hook(lambda delta: deltas[-1].__setitem__(use, delta.detach()))
        return output
    generator = torch.Generator().manual_seed(0)
    risk.spend(FORWARD + 3 * GRADIENT, len(batch))
    with _tapped(risk, tap) as anchor:
        outputs = risk.outputs({}, batch)
    direction = torch.randn(outputs.shape, generator=generator).to(outputs)
    for example in range(3):
        deltas.append({})
        only = torch.zeros_like(outputs)
        only[example] = direction[example]
        torch.autograd.grad(outputs, anchor, only, retain_graph=True, allow_unused=True)
    layouts = []
    for use, (name, call) in enumerate(zip(names, calls, strict=True)):
        fitting = [layout for layout in (Layout(name), Layout(name, False))
                   if all(_stays(layout, call, deltas[n].get(use), n) for n in range(3))]
        if not fitting:
            return None
        layouts.append(fitting[0])
    found = Taps(tuple(layouts), features)
    ours = squared_gradients(risk, found, batch, lambda _: direction[None])[0]
    twin = _squared_gradients_twin(risk, batch, direction)
    return _with_program(risk, found, batch, direction, ours) if _agree(ours, twin) else None


def _with_program(risk: Risk, found: Taps, batch: Batch, direction: Tensor, twin: Tensor) -> Taps:
    """With the network's program, where there is one that gives the squared gradients of `twin`."""
    taps = replace(found, program=find_program(risk))
    if taps.program is None:
        return found
    try:
        ours = _squared_gradients(risk, taps, batch, lambda _: direction[None])[0]
    except Exception as error:  # what goes wrong only on the way back
        log.info("passes by the network's own code: %r", error)
        return found
    return taps if _agree(ours, twin) else found


def _agree(ours: Tensor, twin: Tensor) -> bool:
    return bool(((ours - twin).abs() <= AGREEMENT * twin.max(0).values).all())


def _stays(layout: Layout, call: Call, delta: Tensor | None, example: int) -> bool:
    """Whether an example's gradient touches no rows but its own."""
    if delta is None:
        return True
    rows = call.as_rows(delta)
    if len(rows) % 3:
        return False
    touched = layout.split(rows, 3).flatten(1).ne(0).any(1)
    touched[example] = False
    return not touched.any()


def _squared_gradients_twin(risk: Risk, batch: Batch, direction: Tensor) -> Tensor:
    """The literal twin of `squared_gradients`: one backward pass with weight gradients for each example."""
    rows = []
    for n in range(len(batch)):
        point = {k: w.clone().requires_grad_() for k, w in risk.weights.items()}
        with torch.enable_grad():
            value = (risk.outputs(point, batch.select(slice(n, n + 1))) * direction[n]).sum()
            slopes = torch.autograd.grad(value, list(point.values()), materialize_grads=True, allow_unused=True)
        rows.append(torch.stack([g.square().sum() for g in slopes]))
    return torch.stack(rows)


Directions = Callable[[Tensor], Tensor]
"""outputs [b, ...] -> directions u in the space of the outputs [D, b, ...]."""


def _passes(outputs: Tensor, back: Back, directions: Tensor) -> Iterator[None]:
    """One backward pass for each of the directions [D, b, ...]; yields behind each."""
    for number, direction in enumerate(directions):
        back(direction.to(outputs).contiguous(), number + 1 == len(directions))
        yield


def squared_gradients(risk: Risk, taps: Taps, batch: Batch, directions: Directions) -> Tensor:
    """|d(u . f(x)) / dW_i|^2 of every example and layer, [D, b, layers], by one backward pass for each direction."""
    found = _squared_gradients(risk, taps, batch, directions)
    risk.spend(FORWARD + (GRADIENT - FORWARD) * len(found), len(batch))
    return found


def _squared_gradients(risk: Risk, taps: Taps, batch: Batch, directions: Directions) -> Tensor:
    batch = risk.place_for_speed(batch)
    places = {name: i for i, name in enumerate(risk.weights)}
    uses = [layout.layer for layout in taps.layouts]
    several: dict[str, list[tuple[Tensor, Tensor]]] = {}
    norms = torch.zeros(len(batch), len(places), device=risk.device, dtype=risk.dtype)

    def hear(use: int, call: Call, delta: Tensor) -> None:
        layout = taps.layouts[use]
        if uses.count(uses[use]) == 1:
            norms[:, places[uses[use]]] = torch.cat([_squared_product(*part.factors(layout, d, n))
                                                     for part, d, n in call.parts(delta, len(batch))])
        else:  # several uses add up before the square is taken
            several.setdefault(uses[use], []).append(call.factors(layout, delta, len(batch)))
    outputs, back = taps.listen(risk, batch, hear)
    ends, found = directions(outputs), []
    for _ in _passes(outputs, back, ends):
        for name, factors in several.items():
            a, d = zip(*factors, strict=True)
            norms[:, places[name]] = _squared_product(torch.cat(a, 3), torch.cat(d, 2))
        found.append(norms.clone())
        several.clear()
        norms.zero_()
    return torch.stack(found)


def _squared_product(a: Tensor, d: Tensor) -> Tensor:
    """|a d|^2 of every example for a [b, g, k, t], d [b, g, t, o], by their product or two Gram matrices if cheaper."""
    (k, t), o = a.shape[2:], d.shape[3]
    gram = t * (k + o) < k * o
    step = max(1, CHUNK // (a.shape[1] * (2 * t * t if gram else k * o)))
    parts = []
    for x, y in zip(a.split(step), d.split(step), strict=True):
        parts.append(((x.mT @ x) * (y @ y.mT)).flatten(1).sum(1) if gram else (x @ y).flatten(1).square().sum(1))
    return torch.cat(parts)


def slopes_along(risk: Risk, taps: Taps, batch: Batch, vectors: Mapping[str, Tensor],
                 directions: Directions) -> tuple[Tensor, Tensor]:
    """d(u . f(x; W_i + a V_i)) / da at a = 0 of every example and layer, and the outputs.

    vectors: V_i by layer, of the weights' shapes. Returns [D, b, layers].
    """
    batch = risk.place_for_speed(batch)
    moved: dict[int, Tensor] = {}
    slopes: dict[str, Tensor] = {}

    def meet(use: int, call: Call) -> None:
        vector = call.scaled(vectors[taps.layouts[use].layer])
        moved[use] = call.as_rows(call.operation(call.input, vector))

    def hear(use: int, call: Call, delta: Tensor) -> None:
        layout = taps.layouts[use]
        if use not in moved:
            meet(use, call)
        product = call.as_rows(delta) * moved[use]
        product = product.sum(tuple(range(1, product.ndim)))
        if len(product) != len(batch):
            product = layout.split(product, len(batch)).sum(1)
        slopes[layout.layer] = product + slopes[layout.layer] if layout.layer in slopes else product
    outputs, back = taps.listen(risk, batch, hear, meet)
    ends, found = directions(outputs), []
    nothing = torch.zeros(len(batch), device=risk.device, dtype=risk.dtype)
    for _ in _passes(outputs, back, ends):
        found.append(torch.stack([slopes.get(name, nothing) for name in risk.weights], 1))
        slopes.clear()
    risk.spend(2 * FORWARD + FORWARD * len(ends), len(batch))
    return torch.stack(found), outputs


@dataclass(frozen=True)
class Probe:
    """A direction of a layer's weight for every example.

    vector: V, of the weight's shape, for all, or [b, d] for each example its own. out: [b, out] and into: [b, in],
    signs; the direction is then out into' * V: for a linear operation two examples' forms along such directions are
    uncorrelated if V is made of signs, and all take one linear operation.
    """

    vector: Tensor
    out: Tensor | None = None
    into: Tensor | None = None

    def move(self, layout: Layout, call: Call, output: Tensor) -> Tensor:
        """What the output moves by, in rows."""
        if self.vector.ndim == 2 and self.vector.shape != call.weight.shape:
            examples = len(self.vector)
            a, _ = call.factors(layout, output, examples)
            move = call.joined(layout, a.mT @ call.as_factor(self.vector), output)
            return call.as_rows(move.contiguous())
        x = call.as_rows(call.input)
        if self.into is not None:
            x = x * call.columns(layout.spread(self.into, len(x)))
        move = call.as_rows(call.operation(x.reshape(call.input.shape), self.vector))
        return move if self.out is None else move * call.columns(layout.spread(self.out, len(move)))


Function = Callable[[Tensor, Batch], Tensor]
"""(outputs [b, ...], batch) -> a number or several numbers per example [b, ...]."""


def _slopes(risk: Risk, taps: Taps, batch: Batch, probes: Mapping[str, Probe],
            function: Function) -> tuple[list[Tensor], list[Tensor]]:
    """Steps [b] along every layer's probe, at 0, and the derivatives [b] of the sum of `function` along them."""
    steps = {name: torch.zeros(len(batch), device=risk.device, dtype=risk.dtype, requires_grad=True) for name in probes}
    count = iter(taps.layouts)

    def tap(name: str, call: Call, output: Tensor) -> Tensor:
        layout = next(count)
        if name not in probes:
            return output
        move = probes[name].move(layout, call, output)
        return output + (move * call.columns(layout.spread(steps[name], len(move))[:, None])).reshape(output.shape)
    with _tapped(risk, tap):
        values = function(risk.outputs({}, batch), batch)
        slopes = torch.autograd.grad(values.sum(), list(steps.values()), create_graph=True, materialize_grads=True,
                                     allow_unused=True)
    return list(steps.values()), list(slopes)


def diagonal_second_derivatives(risk: Risk, taps: Taps, batch: Batch, probes: Mapping[str, Probe],
                                function: Function) -> tuple[Tensor, Tensor]:
    """First derivatives along z_i and z_i' H_ii z_i of every example's own function value, each [b, probed layers].

    There are no cross-layer blocks in the latter: a double backward pass for every layer, through what comes behind it.
    """
    batch = risk.place(batch)
    behind = [taps.behind(name) for name in probes]
    risk.spend(2 * FORWARD * (1 + max(behind)) + 4 * FORWARD * sum(behind), len(batch))
    steps, slopes = _slopes(risk, taps, batch, probes, function)
    second = [_second([slope], [step])[0] for step, slope in zip(steps, slopes, strict=True)]
    return torch.stack([slope.detach() for slope in slopes], 1), torch.stack(second, 1)


def example_operator(risk: Risk, taps: Taps, name: str, batch: Batch,
                     function: Function) -> Callable[[Tensor], Tensor] | None:
    """u [b, d] -> H_ii(x) u_x of every example's own function value, for one layer of d weights.

    The second derivative with respect to the layer's output is block diagonal over examples, so one double backward
    pass from there serves all of them; the forward pass is taken once for all products. None where the weight is used
    more than once. Every product costs up to six forward passes.
    """
    uses = [use for use, layout in enumerate(taps.layouts) if layout.layer == name]
    if len(uses) != 1:
        return None
    (use,) = uses
    layout, weight = taps.layouts[use], risk.weights[name]
    batch = risk.place(batch)
    count, found = itertools.count(), {}

    def tap(layer: str, call: Call, output: Tensor) -> Tensor:
        if next(count) != use:
            return output
        found["shift"] = torch.zeros_like(output, requires_grad=True)
        found["call"] = replace(call, input=call.input.detach())
        return output.detach() + found["shift"]
    with _tapped(risk, tap):
        values = function(risk.outputs({}, batch), batch)
        (delta,) = torch.autograd.grad(values.sum(), found["shift"], create_graph=True, materialize_grads=True,
                                       allow_unused=True)
    shift, call, behind = found["shift"], found["call"], taps.behind(name)
    risk.spend(FORWARD + 2 * FORWARD * behind, len(batch))

    def product(u: Tensor) -> Tensor:
        if not delta.requires_grad:
            return torch.zeros_like(u)
        risk.spend(6 * FORWARD * behind, len(batch))
        a, _ = call.factors(layout, shift.detach(), len(batch))
        # torch 2.13 is wrong in the second derivative of BatchNorm along a single example's vector in another order
        move = call.joined(layout, a.mT @ call.as_factor(u), shift).contiguous()
        (second,) = torch.autograd.grad(delta, shift, move, retain_graph=True, materialize_grads=True)
        a, d = call.factors(layout, second, len(batch))
        return call.from_factor(a @ d, weight)
    return product


def _second(slopes: list[Tensor], steps: list[Tensor]) -> list[Tensor]:
    with torch.enable_grad():
        slope = sum(s.sum() for s in slopes)
    if not slope.requires_grad:
        return [torch.zeros_like(step) for step in steps]
    found = torch.autograd.grad(slope, steps, retain_graph=True, materialize_grads=True, allow_unused=True)
    return [f.detach() for f in found]
