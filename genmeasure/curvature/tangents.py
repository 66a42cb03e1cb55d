"""Second derivatives along a direction in each layer, for all layers and examples at once, from first-order tangents.

Along W_i + a V_i the outputs of an operation m behind layer i move by a tangent t_im. The second derivative of a
function of the network's outputs is its own curvature along the outputs' tangent, plus the sum over the operations of
<g_m, m''[t_im, t_im]>, with g_m the function's gradient with respect to the outputs of m. Linear operations add
nothing, and one backward pass gives all g_m. So the tangents of all layers are carried forward together, stacked, each
from its layer on, and no second derivative goes through the network as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp, vmap
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from genmeasure.curvature.calls import Call, linear_call, weight_key
from genmeasure.curvature.draws import generator
from genmeasure.curvature.higher_order import written_out
from genmeasure.curvature.padding import by_length, cut, length
from genmeasure.curvature.taps import (
    AGREEMENT,
    SHARE,
    Function,
    Probe,
    Taps,
    diagonal_second_derivatives,
)
from genmeasure.data.batches import Batch
from genmeasure.matrix_product import attention_function
from genmeasure.matrix_product import linear as linear_product
from genmeasure.risk import FORWARD, Risk

HELD = {"cpu": 2**23, "cuda": 2**27}
"""Numbers that the stacked tangents of one operation may hold; on a CPU few, as caches are small."""
MOST_LIVE = 0.9
"""A larger share of rows that matter is not worth leaving the others out."""
PROBED = 3
"""Examples from which is found where the examples are among the outputs of an operation."""


class OtherPathError(Exception):
    """A batch on which the network takes other steps than on the one that was looked at."""


class NoRuleError(Exception):
    """An operation whose second derivative is not at hand here."""


@dataclass(frozen=True)
class Tangent:
    """What a tensor moves by, along the directions of some layers: values [slots, *shape].

    live: where given, values are [slots, live, d], of these rows of the tensor alone; the others do not count.
    """

    slots: tuple[int, ...]
    values: Tensor
    live: Tensor | None = None
    shape: torch.Size | None = None

    def over(self, slots: tuple[int, ...]) -> Tensor:
        """[slots, *shape], zero for layers that do not move it."""
        if slots == self.slots:
            return self.values
        found = self.values.new_zeros(len(slots), *self.values.shape[1:])
        found[[slots.index(s) for s in self.slots]] = self.values
        return found

    def at(self, slots: tuple[int, ...]) -> Tensor:
        """[slots, *shape] of some of its own."""
        if slots == self.slots[:len(slots)]:
            return self.values[:len(slots)]
        return self.values[[self.slots.index(s) for s in slots]]

    def rows(self, live: Tensor) -> Tensor:
        """[slots, live, d]."""
        if self.live is not None and torch.equal(live, self.live):
            return self.values
        return self.whole().values.flatten(1, -2)[:, live]

    def whole(self) -> Tangent:
        """With all rows, zero where they do not count."""
        if self.live is None:
            return self
        return Tangent(self.slots, _among_all(self.values, self.live, self.shape))

    def __add__(self, other: Tangent) -> Tangent:
        if self.slots == other.slots:
            return Tangent(self.slots, self.values + other.values)
        if len(self.slots) < len(other.slots):
            return other + self
        both = tuple(s for s in self.slots if s in other.slots)
        if both == other.slots == self.slots[:len(both)]:  # as behind a residual branch
            found = torch.empty_like(self.values, memory_format=torch.contiguous_format)
            torch.add(self.values[:len(both)], other.values, out=found[:len(both)])
            found[len(both):] = self.values[len(both):]
            return Tangent(self.slots, found)
        rest = tuple(s for s in other.slots if s not in both)
        found = torch.cat([self.values, other.at(rest)])
        if both:
            found[[self.slots.index(s) for s in both]] += other.at(both)
        return Tangent((*self.slots, *rest), found)


@dataclass(frozen=True)
class Place:
    """Where the examples are among a tensor's numbers: along an axis, in front of or behind what shares it."""

    axis: int
    first: bool = True

    def by_example(self, tensor: Tensor, examples: int) -> Tensor:
        """[k, *shape] -> [k, outer, examples, inner]."""
        shape = tensor.shape[1:]
        shared = shape[self.axis] // examples
        outer, inner = shape[:self.axis].numel(), shape[self.axis + 1:].numel()
        outer, inner = (outer, inner * shared) if self.first else (outer * shared, inner)
        return tensor.reshape(len(tensor), outer, examples, inner)


@dataclass
class Step:
    """One operation of a forward pass, with what is needed to carry tangents through it.

    moved: the inputs that can move. apply: the operation as a function of these alone. use: number of the use of a
    measured weight, if it is one. slope: the gradient with respect to its output, where the rule asks for it. live:
    numbers of the rows of its output that the network's outputs depend on, where that is not most of them.
    """

    rule: Callable[[Step, list[Tangent]], tuple[list[Tangent], Tangent | None]] | None
    function: Callable
    moved: list[Tensor]
    apply: Callable
    outputs: list[Tensor]
    arguments: tuple = ()
    use: int | None = None
    call: Call | None = None
    slope: Tensor | None = None
    live: Tensor | None = None

    @property
    def row_by_row(self) -> bool:
        """Whether it acts on the last axis alone, so that rows can be left out."""
        if self.use is not None:
            return self.call.convolution is None
        like = self.outputs[0]
        return like.ndim > 1 and (
            self.rule in (elementwise, layer_norm) or getattr(self.function, "__name__", "") == "dropout" or
            (self.rule is addition and all(t.shape == like.shape for t in self.moved)))


# rules: (step, tangents of what moves) -> the tangents of its output, and <g, m''[t, t]> before it is summed over each
# example's numbers. Large temporaries cost more than arithmetic, so what is new is changed in place.

def affine(step: Step, tangents: list[Tangent]) -> tuple[list[Tangent], None]:
    slots, values = _aligned(tangents)
    with torch.no_grad():
        found = vmap(lambda *t: jvp(step.apply, tuple(step.moved), t)[1])(*values)
    return [Tangent(slots, v) for v in (found if isinstance(found, (tuple, list)) else [found])], None


def linear(step: Step, tangents: list[Tangent]) -> tuple[list[Tangent], None]:
    """In one tensor, without a constant."""
    (t,) = tangents
    found = vmap(step.apply)(t.values)
    return [Tangent(t.slots, v) for v in (found if isinstance(found, (tuple, list)) else [found])], None


def addition(step: Step, tangents: list[Tangent]) -> tuple[list[Tangent], None]:
    if step.arguments[1].get("alpha", 1) != 1:
        return affine(step, tangents)
    shape = step.outputs[0].shape

    def spread(t: Tangent) -> Tangent:
        if t.values.shape[1:] == shape:
            return t
        ones = [1] * (len(shape) - t.values.ndim + 1)
        return Tangent(t.slots, t.values.reshape(len(t.slots), *ones, *t.values.shape[1:]).expand(-1, *shape))
    first, *other = map(spread, tangents)
    return [first + other[0] if other else first], None


def any_function(step: Step, tangents: list[Tangent]) -> tuple[list[Tangent], Tangent]:
    """By nested forward mode through the one operation."""
    slots, values = _aligned(tangents)
    zero, one = torch.zeros_like(values[0].flatten()[0]), torch.ones_like(values[0].flatten()[0])

    def twice(*directions: Tensor) -> tuple[Tensor, Tensor]:
        def line(a: Tensor) -> Tensor:
            return step.apply(*(p + a * d for p, d in zip(step.moved, directions, strict=True)))
        return jvp(lambda a: jvp(line, (a,), (one,))[1], (zero,), (one,))
    with torch.no_grad(), written_out():
        first, second = vmap(twice)(*values)
    return [Tangent(slots, first)], Tangent(slots, step.slope * second)


def elementwise(step: Step, tangents: list[Tangent]) -> tuple[list[Tangent], Tangent | None]:
    (t,) = tangents
    with torch.enable_grad():
        x = step.moved[0].detach().requires_grad_()
        (first,) = torch.autograd.grad(step.apply(x).sum(), x, create_graph=True)
        second = torch.autograd.grad(first.sum(), x)[0] if first.requires_grad else torch.zeros_like(x)
    first, bent = first.detach(), step.slope * second
    found = [Tangent(t.slots, first * t.values)]
    return found, Tangent(t.slots, t.values.square().mul_(bent)) if bent.any() else None


def bilinear(step: Step, tangents: list[Tangent]) -> tuple[list[Tangent], Tangent | None]:
    (a, b), (s, t) = step.moved, tangents
    moved = (Tangent(s.slots, vmap(step.apply, (0, None))(s.values, b)) +
             Tangent(t.slots, vmap(step.apply, (None, 0))(a, t.values)))
    both = tuple(x for x in s.slots if x in t.slots)
    if not both:
        return [moved], None
    return [moved], Tangent(both, vmap(step.apply)(s.at(both), t.at(both)).mul_(2 * step.slope))


def softmax(step: Step, tangents: list[Tangent]) -> tuple[list[Tangent], Tangent]:
    def over(_: Tensor, dim: int, *__: Any, **___: Any) -> int:
        return dim
    (t,), p = tangents, step.outputs[0]
    args, kwargs = step.arguments
    dim = over(*args, **kwargs)
    dim = dim if dim < 0 else dim - p.ndim
    centred = t.values - (p * t.values).sum(dim, keepdim=True)
    bent = p * (step.slope - (p * step.slope).sum(dim, keepdim=True))
    return [Tangent(t.slots, p * centred)], Tangent(t.slots, centred.square_().mul_(bent))


def layer_norm(step: Step, tangents: list[Tangent]) -> tuple[list[Tangent], Tangent]:
    """y = w c / s + b with c = x - mean(x), s^2 = mean(c^2) + eps: twice differentiated, with y' = c'/s - y s'/s."""
    def setting(_: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None,
                eps: float = 1e-5, *__: Any) -> tuple:
        return tuple(range(-len(shape), 0)), weight, eps
    (x,), (t,) = step.moved, tangents
    args, kwargs = step.arguments
    over, weight, eps = setting(*args, **kwargs)
    centred = x - x.mean(over, keepdim=True)
    scale = (centred.square().mean(over, keepdim=True) + eps).rsqrt()
    y = centred * scale
    moved = (t.values - t.values.mean(over, keepdim=True)).mul_(scale)
    spread = (moved * y).mean(over, keepdim=True)  # s' / s
    # y'' = -(2 y' s' + y s'') / s with s'' / s = mean(c'^2) / s^2 - (s' / s)^2
    curved = moved.square().mean(over, keepdim=True) - spread.square()
    first = moved.addcmul_(y, spread, value=-1)
    slope = step.slope if weight is None else step.slope * weight
    second = -2 * spread * (first * slope).sum(over, keepdim=True) - curved * (slope * y).sum(over, keepdim=True)
    return [Tangent(t.slots, first if weight is None else first.mul_(weight))], Tangent(t.slots, second)


def on_live_rows(step: Step, tangents: list[Tangent]) -> tuple[list[Tangent], Tangent | None]:
    """The rule on live rows alone; nothing comes of the others (padding, tokens that nobody looks at)."""
    def rows(tensor: Tensor) -> Tensor:
        return tensor.flatten(0, -2)[step.live]
    part = replace(step, live=None, moved=[rows(x) for x in step.moved], outputs=[rows(x) for x in step.outputs],
                   slope=None if step.slope is None else rows(step.slope))
    found, bent = step.rule(part, [Tangent(t.slots, t.rows(step.live)) for t in tangents])
    shape = step.outputs[0].shape
    if bent is not None:
        bent = Tangent(bent.slots, _among_all(bent.values.sum(-1, keepdim=True), step.live, (*shape[:-1], 1)))
    return [replace(t, live=step.live, shape=shape) for t in found], bent


def _among_all(values: Tensor, live: Tensor, shape: Sequence[int]) -> Tensor:
    """[k, live, d] -> [k, *shape], zero elsewhere."""
    found = values.new_zeros(len(values), math.prod(shape[:-1]), values.shape[-1])
    found[:, live] = values
    return found.reshape(len(values), *shape)


def _aligned(tangents: list[Tangent]) -> tuple[tuple[int, ...], list[Tensor]]:
    slots = tuple(dict.fromkeys(s for t in tangents for s in t.slots))
    return slots, [t.over(slots) for t in tangents]


LINEAR = frozenset((
    "__getitem__", "__get__", "view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "transpose",
    "permute", "swapaxes", "swapdims", "movedim", "unsqueeze", "squeeze", "expand", "expand_as", "contiguous",
    "select", "narrow", "chunk", "split", "unbind", "tensor_split", "repeat", "repeat_interleave", "roll", "flip",
    "clone", "to", "type_as", "float", "double", "index_select", "gather", "take_along_dim", "mean", "sum", "cumsum",
    "neg", "__neg__", "negative", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "dropout", "dropout1d", "dropout2d", "dropout3d", "interpolate",
    "pixel_shuffle", "unfold", "fold", "tril", "triu"))
"""Names of functions that are linear in one tensor."""
ADDITIONS = frozenset(("add", "__add__", "__radd__"))
AFFINE = LINEAR | ADDITIONS | {
    "masked_fill", "where", "cat", "stack", "hstack", "vstack", "pad", "_pad", "sub", "subtract", "__sub__", "__rsub__"}
"""Of functions that are affine in all of their tensors together."""
ELEMENTWISE = frozenset((
    "gelu", "relu", "tanh", "sigmoid", "silu", "elu", "celu", "selu", "leaky_relu", "relu6", "hardtanh",
    "hardswish", "hardsigmoid", "logsigmoid", "softplus", "mish", "softsign", "tanhshrink", "exp", "expm1", "log",
    "log1p", "sqrt", "rsqrt", "square", "sin", "cos", "erf", "abs", "reciprocal"))
"""Of one tensor, number by number."""
MULTIPLICATIONS = frozenset(["mul", "__mul__", "__rmul__", "multiply"])
PRODUCTS = frozenset(["matmul", "__matmul__", "bmm", "mm"]) | MULTIPLICATIONS
"""Bilinear in two tensors."""
DIVISIONS = frozenset(["div", "__truediv__", "true_divide", "divide"])
AFFINE_IN_FIRST = DIVISIONS | {"linear", "conv1d", "conv2d", "conv3d", "batch_norm"}
"""Affine in the first tensor where the others do not move."""
STRAIGHT = (linear, addition, affine)
"""Rules of what bends nothing."""
INSTEAD = {"add_": torch.add, "sub_": torch.sub, "mul_": torch.mul, "div_": torch.div, "view": Tensor.reshape}
"""What `x += y` and its like come as; where a model goes on with the changed x under another name, what comes out is
wrong, which the comparison with double backward shows. Stacked tangents have no fixed order in memory for a view."""


def rule_for(function: Callable, moved: int, first: bool) -> Callable:
    """How tangents pass an operation of which `moved` inputs move. first: whether the first one does."""
    name = getattr(function, "__name__", "")
    if moved == 1 and (name in LINEAR or name in PRODUCTS or (name in DIVISIONS and first)):
        return linear
    if name in ADDITIONS:
        return addition
    if name in AFFINE or (moved == 1 and name in AFFINE_IN_FIRST and first):
        return affine
    if name in ELEMENTWISE or (name in ("pow", "__pow__") and moved == 1 and first):
        return elementwise
    if name in PRODUCTS and moved == 2:
        return bilinear
    return {"softmax": softmax, "layer_norm": layer_norm}.get(name, any_function)


def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
              is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False) -> Tensor:
    """`scaled_dot_product_attention` of elementary operations, without dropout."""
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype is torch.bool else scores + attn_mask
    return torch.softmax(scores, -1) @ value


class _Recording(TorchFunctionMode):
    """Notes every operation from the first use of a measured weight on."""

    def __init__(self, risk: Risk, anchor: Tensor):
        super().__init__()
        self.names = {weight_key(w): name for name, w in risk.weights.items()}
        self.anchor, self.steps, self.layers = anchor, [], []
        self.known: dict[int, Tensor] = {}

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        written = {F.multi_head_attention_forward: attention_function, F.scaled_dot_product_attention: attention}
        if func in written:
            with self:
                return written[func](*args, **kwargs)
        if kwargs.get("inplace"):
            kwargs["inplace"] = False
        name = getattr(func, "__name__", "")
        leaves, form = tree_flatten((args, kwargs))
        moved = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and id(leaf) in self.known]
        if moved:
            func = INSTEAD.get(name, func)
            if name not in INSTEAD and name.endswith("_") and not name.startswith("__"):
                raise NoRuleError(f"{name} changes its input")
        output = (linear_product if func is F.linear else func)(*args, **kwargs)
        call = linear_call(func, args, kwargs)
        layer = call and self.names.get(weight_key(call.weight))
        if layer:
            output = output if output.requires_grad else output + self.anchor
            call = replace(call, input=call.input.detach())
            source = [leaves[i] for i in moved]
            if any(id(leaf) not in map(id, (args[1:2] if call.transposed else args[:1])) for leaf in source):
                raise NoRuleError("a measured weight or its bias moves with another")
            self._note(Step(None, func, source, call.operation, [output], use=len(self.layers), call=call))
            self.layers.append(layer)
        elif moved:
            outputs = [t for t in (output if isinstance(output, (tuple, list)) else [output])
                       if isinstance(t, Tensor) and t.requires_grad]
            if outputs:
                self._note(self._step(func, leaves, form, moved, output, outputs))
        return output

    def _step(self, func: Callable, leaves: list, form: Any, moved: list[int], output: Any,
              outputs: list[Tensor]) -> Step:
        held = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]

        def apply(*values: Tensor) -> Any:
            some = list(held)
            for place, value in zip(moved, values, strict=True):
                some[place] = value
            args, kwargs = tree_unflatten(some, form)
            return func(*args, **kwargs)
        rule = rule_for(func, len(moved), moved[0] == 0)
        several = isinstance(output, (tuple, list))
        if several and (rule not in STRAIGHT or len(outputs) < len(output)):
            raise NoRuleError(f"{getattr(func, '__name__', func)} has several outputs")
        return Step(rule, func, [leaves[i] for i in moved], apply, outputs, tree_unflatten(held, form))

    def _note(self, step: Step) -> None:
        self.steps.append(step)
        self.known.update((id(t), t) for t in step.outputs)


Path = tuple[tuple, ...]
"""What the steps of a forward pass are, in their order."""


@dataclass
class Recorded:
    """A forward pass: its steps, the layers that it uses in turn, the network's outputs."""

    steps: list[Step]
    layers: list[str]
    outputs: Tensor
    anchor: Tensor

    @property
    def path(self) -> Path:
        """What the steps are, in their order."""
        return tuple((getattr(s.function, "__name__", ""), getattr(s.rule, "__name__", ""), s.use, len(s.moved))
                     for s in self.steps)

    def slopes(self, direction: Tensor, wanted: Sequence[int], *, again: bool = False) -> list[Tensor | None]:
        """The gradients of <direction, outputs> with respect to the outputs of the steps `wanted`."""
        return list(torch.autograd.grad(self.outputs, [self.steps[i].outputs[0] for i in wanted], direction,
                                        retain_graph=again, allow_unused=True))


def _recorded(risk: Risk, batch: Batch) -> Recorded:
    anchor = torch.zeros((), device=risk.device, dtype=risk.dtype, requires_grad=True)
    mode = _Recording(risk, anchor)
    with torch.enable_grad(), mode:
        outputs = risk.outputs({}, batch)
    return Recorded(mode.steps, mode.layers, outputs, anchor)


@dataclass(frozen=True)
class Tangents:
    """How tangents are carried through a network.

    largest: numbers that the outputs of a step hold for each example, at most, for sequences of `length`. known: for
    every path that was looked at, the steps that are not affine and where the examples are among their outputs; None
    for one that cannot be followed. A network may take several paths (transformers leave out a mask that hides
    nothing).
    """

    taps: Taps
    largest: int
    length: int
    known: dict[Path, Mapping[int, Place] | None]

    def examples(self, risk: Risk, layers: int, length: int) -> int:
        """How many examples to take at a time."""
        held = HELD.get(risk.device.type, HELD["cpu"])
        return max(1, int(held / (layers * self.largest * length / self.length)))

    @torch.no_grad()
    def second_derivatives(self, risk: Risk, batch: Batch, probes: Mapping[str, Probe],
                           function: Function) -> tuple[Tensor, Tensor]:
        """As `diagonal_second_derivatives`, for the same price whatever the layers that lie behind. Raises
        `OtherPathError` for examples on which the network takes steps that cannot be followed."""
        batch, names = risk.place(batch), list(probes)
        run = _recorded(risk, batch)
        if run.path not in self.known:
            self.known[run.path] = _look(risk, self.taps, batch.select(_some(len(batch))), self, run.path)
        places = self.known[run.path]
        if places is None:
            risk.spend(FORWARD, len(batch))
            raise OtherPathError
        slope, curvature = _of_function(run.outputs, batch, function)
        backward = self._look_back(run, slope, list(places))
        risk.spend(FORWARD * (3 + backward + sum(self.taps.behind(name) for name in names)), len(batch))
        second = slope.new_zeros(len(names), len(batch))
        moved = self._carried(run, places, probes, names, second, len(batch))
        first = torch.zeros_like(second)
        if moved is not None:
            for slot, along in zip(moved.slots, moved.values, strict=True):
                first[slot] = (slope * along).flatten(1).sum(1)
                second[slot] += curvature(along)
        return first.T, second.T

    @staticmethod
    def _look_back(run: Recorded, slope: Tensor, curved: Sequence[int]) -> int:
        """Gives the steps `curved` the gradient along `slope`, and rows that can be left out their live ones; how many
        passes backward it took.

        The outputs' gradient in a direction without zeros is zero where they depend on nothing, and almost surely
        nowhere else. A random direction is taken where the slope has zeros.
        """
        wanted = [i for i, step in enumerate(run.steps) if step.row_by_row]
        once = bool((slope != 0).all())
        if once:
            both = sorted({*curved, *wanted})
            found = along = dict(zip(both, run.slopes(slope, both), strict=True))
        else:
            mix = torch.randn(run.outputs.shape, generator=generator("live rows"), dtype=torch.float64).to(run.outputs)
            found = dict(zip(wanted, run.slopes(mix, wanted, again=True), strict=True))
            along = dict(zip(curved, run.slopes(slope, curved), strict=True))
        for i in curved:
            run.steps[i].slope = None if along[i] is None else along[i].detach()
        for i in wanted:
            if found[i] is not None:
                live = (found[i] != 0).any(-1).flatten()
                if live.double().mean() < MOST_LIVE:
                    run.steps[i].live = live.nonzero().squeeze(1)
        return 1 if once else 2

    def _carried(self, run: Recorded, places: Mapping[int, Place], probes: Mapping[str, Probe], names: list[str],
                 second: Tensor, examples: int) -> Tangent | None:
        """Adds what every step bends to `second` [slots, examples]; the tangents of the outputs."""
        tangents: dict[int, Tangent] = {}
        last = {id(t): number for number, step in enumerate(run.steps) for t in step.moved}
        last[id(run.outputs)] = len(run.steps)
        for number, step in enumerate(run.steps):
            inputs = [tangents.get(id(t)) for t in step.moved]
            moves = [t.detach() for t in step.moved]
            keys = [id(t) for t in step.outputs]
            live = replace(step, moved=moves, outputs=[t.detach() for t in step.outputs])
            found, bent = self._through(live, inputs, probes, names)
            for key, tangent in zip(keys, found, strict=False):  # none where nothing moves
                if key in last and last[key] > number:
                    tangents[key] = tangent
            if bent is not None and found:
                by_example = places[number].by_example(bent.values, examples).sum((1, 3))
                second[list(bent.slots)] += by_example
            step.slope = live.slope = None
            for t in step.moved:
                if last[id(t)] <= number:
                    tangents.pop(id(t), None)
        found = tangents.get(id(run.outputs))
        return None if found is None else found.whole()

    def _through(self, step: Step, inputs: list[Tangent | None], probes: Mapping[str, Probe],
                 names: list[str]) -> tuple[list[Tangent], Tangent | None]:
        if step.use is not None:
            return self._through_layer(step, inputs[0] if inputs else None, probes, names)
        if not any(inputs):
            return [], None
        if any(t is None for t in inputs):  # some of what could move stays
            still = [t is None for t in inputs]
            count = sum(not s for s in still)
            held, whole = step.moved, step.apply

            def apply(*values: Tensor) -> Any:
                rest = iter(values)
                return whole(*(p if s else next(rest) for p, s in zip(held, still, strict=True)))
            step = replace(step, rule=rule_for(step.function, count, not still[0]), apply=apply,
                                       moved=[p for p, s in zip(held, still, strict=True) if not s])
            inputs = [t for t in inputs if t is not None]
        if step.rule not in STRAIGHT and step.slope is None:  # nothing behind it reaches the function
            step = replace(step, slope=torch.zeros_like(step.outputs[0]))
        if step.live is not None and step.row_by_row:
            return on_live_rows(step, inputs)
        return step.rule(step, [t.whole() for t in inputs])

    def _through_layer(self, step: Step, source: Tangent | None, probes: Mapping[str, Probe],
                       names: list[str]) -> tuple[list[Tangent], Tangent | None]:
        layout, call, output = self.taps.layouts[step.use], step.call, step.outputs[0]
        slot = names.index(layout.layer) if layout.layer in probes else None
        again = source is not None and slot in source.slots  # used before: its input moves with it
        live = None if again else step.live
        if source is None and slot is None:
            return [], None
        slots = () if source is None else source.slots
        new = () if slot is None or again else (slot,)
        shape = output.shape if live is None else (len(live), output.shape[-1])
        parts = []
        if source is not None:
            parts.append(_operate(call, source.whole().values if live is None else source.rows(live)))
        if slot is not None:
            own = probes[layout.layer].move(layout, call, output)
        if new:
            parts.append(own.reshape(1, *shape) if live is None else own[live][None])
        values = torch.cat(parts) if len(parts) > 1 else parts[0]
        found = Tangent((*slots, *new), values, live, None if live is None else output.shape)
        if not again:
            return [found], None
        at = slots.index(slot)
        values[at] += own.reshape(shape)
        twice = replace(call, input=source.whole().values[at])
        if step.slope is None:
            return [found], None
        bent = 2 * step.slope * probes[layout.layer].move(layout, twice, output).reshape(shape)
        return [found], Tangent((slot,), bent[None])


def _operate(call: Call, values: Tensor) -> Tensor:
    """The layer's linear operation on stacked inputs [k, ...]."""
    weight = call.weight.detach()
    if call.convolution is not None:
        return call.operation(values.flatten(0, 1), weight).unflatten(0, (len(values), -1))
    return linear_product(values, weight.T if call.transposed else weight)


def _of_function(outputs: Tensor, batch: Batch, function: Function) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The function's gradient with respect to the outputs, and m -> m' A m [b] with its Hessian A."""
    with torch.enable_grad():
        here = outputs.detach().requires_grad_()
        (slope,) = torch.autograd.grad(function(here, batch).sum(), here, create_graph=True)

    def curvature(along: Tensor) -> Tensor:
        if not slope.requires_grad:
            return along.new_zeros(len(batch))
        (bent,) = torch.autograd.grad(slope, here, along, retain_graph=True, materialize_grads=True)
        return (bent * along).flatten(1).sum(1)
    return slope.detach(), curvature


def second_derivatives(risk: Risk, taps: Taps, batch: Batch, probes: Mapping[str, Probe],
                       function: Function) -> tuple[Tensor, Tensor]:
    """As `diagonal_second_derivatives`, from tangents where they can be carried through this network."""
    found = find_tangents(risk, taps)
    if found is None:
        return diagonal_second_derivatives(risk, taps, batch, probes, function)
    try:
        return found.second_derivatives(risk, batch, probes, function)
    except OtherPathError:
        return diagonal_second_derivatives(risk, taps, batch, probes, function)


def in_parts(risk: Risk, taps: Taps, batch: Batch, layers: int) -> list[Batch]:
    """The examples of a batch, the longest sequences first, in parts as `second_derivatives` of that many layers likes
    them; the parts' `rows` tell which are where."""
    found, most = find_tangents(risk, taps), max(1, max(risk.batches.lengths) // SHARE)
    return by_length(risk, batch, lambda n: most if found is None else found.examples(risk, layers, n))


def find_tangents(risk: Risk, taps: Taps | None) -> Tangents | None:
    """How tangents are carried through this network.

    None where an operation changes its input in place or has no second derivative of its own, where examples cannot be
    told apart in its output, and where what comes out disagrees with double backward on three examples, of the first,
    the middle and the last layer.
    """
    if taps is None:
        return None
    key = f"tangents {[x.name for x in risk.layers]}"
    return risk.shared.remember(key, lambda: _find_tangents(risk, taps))


def _some(count: int) -> Tensor:
    """`PROBED` of `count` examples, the first and the last among them."""
    return torch.arange(PROBED) * (count - 1) // (PROBED - 1)


def _find_tangents(risk: Risk, taps: Taps) -> Tangents | None:
    first = next(iter(risk.batches))
    whole = risk.place(first.select(_some(len(first))))
    batch = cut(risk, whole)
    try:
        with torch.no_grad():
            run = _recorded(risk, batch)
    except NoRuleError:
        return None
    largest = max((t.numel() for step in run.steps for t in step.outputs), default=0) // PROBED
    found = Tangents(taps, max(1, largest), length(risk, batch), {})
    found.known[run.path] = _look(risk, taps, batch, found, run.path, whole)
    return None if found.known[run.path] is None else found


def _look(risk: Risk, taps: Taps, batch: Batch, tangents: Tangents, path: Path,
          whole: Batch | None = None) -> Mapping[int, Place] | None:
    """Where the three examples of a batch are on a path; None where it cannot be followed or what comes out disagrees
    with double backward on the same examples, or on `whole`, where nothing is cut off."""
    draws = generator("tangents", 0)
    used = list(dict.fromkeys(layout.layer for layout in taps.layouts))
    several = {x for x in used if sum(layout.layer == x for layout in taps.layouts) > 1}
    probes = {name: Probe(torch.randn(risk.weights[name].shape, generator=draws, dtype=torch.float64).to(
        risk.weights[name])) for name in {used[0], used[len(used) // 2], used[-1], *several}}
    try:
        places = _placed(risk, taps, batch, draws, path)
        if places is None:
            return None
        ours = replace(tangents, known={path: places}).second_derivatives(risk, batch, probes, risk.losses_of)
    except (NoRuleError, RuntimeError, NotImplementedError, IndexError, TypeError):
        return None
    twin = diagonal_second_derivatives(risk, taps, batch if whole is None else whole, probes, risk.losses_of)
    agree = all(((a - b).abs() <= AGREEMENT * b.abs().max(0).values).all() for a, b in zip(ours, twin, strict=True))
    return places if agree else None


def _placed(risk: Risk, taps: Taps, batch: Batch, draws: torch.Generator, path: Path) -> Mapping[int, Place] | None:
    run = _recorded(risk, batch)
    uses = [layout.layer for layout in taps.layouts]
    if run.path != path or run.layers != uses:
        return None
    curved = [i for i, s in enumerate(run.steps)
              if (s.rule not in STRAIGHT if s.use is None else uses.count(uses[s.use]) > 1)]
    direction = torch.randn(run.outputs.shape, generator=draws, dtype=torch.float64).to(run.outputs)
    slopes = []
    for example in range(PROBED):
        only = torch.zeros_like(direction)
        only[example] = direction[example]
        slopes.append(run.slopes(only, curved, again=True))
    places = {}
    for number, each in zip(curved, zip(*slopes, strict=True), strict=True):
        shape = run.steps[number].outputs[0].shape
        place = next((p for axis, n in enumerate(shape) if n % PROBED == 0 for p in (Place(axis), Place(axis, False))
                      if all(_only(p, g, n) for n, g in enumerate(each))), None)
        if place is None:
            return None
        places[number] = place
    return places


def _only(place: Place, slope: Tensor | None, example: int) -> bool:
    """Whether a gradient of one example is zero at the others' places."""
    if slope is None:
        return True
    touched = place.by_example(slope[None], PROBED).abs().amax((0, 1, 3)) > 0
    touched[example] = False
    return not touched.any()
