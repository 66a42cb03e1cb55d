"""Networks as lists of operations, which run forwards and back through activations without the network's own code.

Automatic differentiation and the code of a network cost as much as the operations themselves where examples are few at
a time, and a few images fit into a core's own cache. So on a CPU a convolutional network that `torch.fx` can follow is
put down once, with its normalisations folded into the weights on the way back. What runs then holds no state, so that
each core may take examples of its own.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from genmeasure.checkpoints.pinned import shared_copy
from genmeasure.curvature.calls import Back, Call, Hear, Meet, memory_order, normalisation, weight_key
from genmeasure.data.batches import Batch
from genmeasure.matrix_product import linear
from genmeasure.risk import Risk

log = logging.getLogger("genmeasure")

CONVOLUTIONS = {nn.Conv1d: torch.conv1d, nn.Conv2d: torch.conv2d, nn.Conv3d: torch.conv3d}
NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
RECTIFIERS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
WRITING = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor",
           "ilshift", "irshift", "imatmul")
HELD = 2**19
"""Numbers of its largest value that a pass may hold: what flows is two megabytes, about a core's own cache."""
LEAST = 8
"""Fewer examples at a time cost more than a cache saves."""


class UnknownError(Exception):
    """A network that cannot be put down."""


@dataclass
class Step:
    """An operation. inputs and output: numbers of values. over: the first input may be written over. needed: which
    inputs depend on weights. last: the numbers of the values that nothing reads any more."""

    inputs: tuple[int, ...]
    output: int
    over: bool = False
    needed: tuple[bool, ...] = ()
    last: list[int] = field(default_factory=list)

    fresh = True
    """Whether nothing else holds the gradients that come of it, so that they may be written over."""

    def run(self, *inputs: Tensor) -> tuple[Tensor, Any]:
        """The output, and what the way back needs."""
        raise NotImplementedError

    def back(self, slope: Tensor, kept: Any, own: bool) -> Sequence[Tensor | None]:
        """The gradients with respect to the inputs; own: `slope` may be written over."""
        raise NotImplementedError


@dataclass
class Rectifier(Step):
    def run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.relu_() if self.over else x.relu()
        return y, y

    def back(self, slope: Tensor, y: Tensor, own: bool) -> list[Tensor]:
        if own:
            return [torch.ops.aten.threshold_backward.grad_input(slope, y, 0, grad_input=slope)]
        return [torch.ops.aten.threshold_backward(slope, y, 0)]


@dataclass
class Sum(Step):
    fresh = False

    def run(self, *inputs: Any) -> tuple[Any, list[tuple[torch.Size, torch.dtype] | None]]:
        x, y = inputs
        kinds = [(t.shape, t.dtype) if isinstance(t, Tensor) else None for t in inputs]
        over = self.over and None not in kinds and kinds[0] == kinds[1]
        return x.add_(y) if over else x + y, kinds

    def back(self, slope: Tensor, kinds: list[tuple[torch.Size, torch.dtype] | None],
             own: bool) -> list[Tensor | None]:
        return [None if kind is None else slope if (slope.shape, slope.dtype) == kind else
                slope.sum_to_size(kind[0]).to(kind[1]) for kind in kinds]


@dataclass(kw_only=True)
class Product(Step):
    """A convolution or linear operation and the normalisation that follows. use: its number among those of weights.

    folded: the weight that takes gradients back.
    """

    weight: Tensor
    bias: Tensor | None
    use: int | None
    operation: Callable[..., Tensor]
    setting: tuple | None
    scale: Tensor | None = None
    shift: Tensor | None = None
    folded: Tensor | None = None

    def run(self, x: Tensor) -> tuple[Tensor, Call]:
        y = self.operation(x, self.weight, self.bias, *(self.setting or ()))
        if self.scale is not None:
            y = torch.addcmul(self.shift, y, self.scale, out=y)
        return y, Call(self.weight, x, self.setting, self._linear, scale=self.scale)

    def _linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.operation(x, weight, None, *(self.setting or ()))

    def back(self, slope: Tensor, call: Call, own: bool) -> list[Tensor]:
        if self.folded is None:
            self.folded = call.scaled(self.weight)
        if self.setting is None:
            return [linear(slope, self.folded.T)]
        stride, padding, dilation, groups = self.setting
        return [torch.ops.aten.convolution_backward(
            slope, call.input, self.folded, None, stride, padding, dilation, False, (0,) * len(stride), groups,
            (True, False, False))[0]]


@dataclass(kw_only=True)
class Other(Step):
    """Any operation, taken back by automatic differentiation. call: its inputs -> its output."""

    call: Callable[[Sequence[Any]], Any]
    fresh = False

    def run(self, *inputs: Any) -> tuple[Any, tuple[Tensor, list[Tensor | None]] | None]:
        given, leaves = [], []
        for x, needed in zip(inputs, self.needed, strict=True):
            smooth = needed and isinstance(x, Tensor) and x.is_floating_point()
            given.append(x.detach().requires_grad_() if smooth else x)
            leaves.append(given[-1] if smooth else None)
        with torch.enable_grad():
            y = self.call(given)
        if isinstance(y, Tensor):
            return y.detach(), (y, leaves) if y.requires_grad else None
        if any(isinstance(t, Tensor) for t in tree_leaves(y)):
            raise UnknownError("an operation that gives several tensors")
        return y, None  # a size

    def back(self, slope: Tensor, kept: tuple[Tensor, list[Tensor | None]] | None, own: bool) -> list[Tensor | None]:
        if kept is None:
            return [None] * len(self.inputs)
        y, leaves = kept
        found = iter(torch.autograd.grad(y, [x for x in leaves if x is not None], slope, retain_graph=True,
                                         allow_unused=True))
        return [None if x is None else next(found) for x in leaves]


@dataclass
class Program:
    """The steps of a network of one input, value 0, and the number of its output.

    at_once: how many examples to take at a time; None: any.
    """

    steps: list[Step]
    end: int
    at_once: int | None = None

    @property
    def core_each(self) -> bool:
        """Whether so few examples are taken at a time that each core may have its own."""
        return self.at_once is not None

    @torch.no_grad()
    def listen(self, batch: Batch, hear: Hear, meet: Meet) -> tuple[Tensor, Back]:
        """Outputs of a forward pass, which lets every use of a weight `meet`, and the backward pass, which lets each
        `hear`, the last one first."""
        outputs, kept = None, []
        for step, value, saved in self.run(batch):
            kept.append(saved)
            if isinstance(step, Product) and step.use is not None:
                meet(step.use, saved)
            if step.output == self.end:
                outputs = value
        return outputs, lambda direction, last: self._back(direction, kept, hear, last)

    @torch.no_grad()
    def outputs(self, batch: Batch) -> Tensor:
        """Of a forward pass."""
        for step, value, _ in self.run(batch):
            if step.output == self.end:
                found = value
        return found

    def run(self, batch: Batch) -> Iterator[tuple[Step, Any, Any]]:
        """Every step with what comes out and what the way back needs, to be called without gradients."""
        values: dict[int, Any] = {0: batch.inputs[0]}
        for step in self.steps:
            values[step.output], saved = step.run(*(values[n] for n in step.inputs))
            yield step, values[step.output], saved
            for number in step.last:
                del values[number]

    @torch.no_grad()
    def _back(self, direction: Tensor, kept: list[Any], hear: Hear, last: bool) -> None:
        slopes = {self.end: (direction, False)}  # and whether they may be written over
        for place, step in reversed(list(enumerate(self.steps))):
            (slope, own), saved = slopes.pop(step.output, (None, False)), kept[place]
            if last:
                kept[place] = None
            if slope is None:
                continue
            if isinstance(step, Product):
                order = memory_order(saved)
                slope = slope if order is None else slope.contiguous(memory_format=order)
                if step.use is not None:
                    hear(step.use, saved, slope)
            if not any(step.needed):
                continue
            for number, needed, found in zip(step.inputs, step.needed, step.back(slope, saved, own), strict=True):
                if found is None or not needed:
                    continue
                if number in slopes:
                    other, _ = slopes[number]
                    found = found.add_(other) if step.fresh else found + other
                slopes[number] = found, step.fresh


def find_program(risk: Risk) -> Program | None:
    """The network of a risk on a CPU, or None where it has no convolutions or cannot be put down.

    Tried on three examples, together and one by one, as an operation may have been put down with their number or take
    one example's values for another; these are not counted, so that what a reading costs does not depend on where it
    runs. Good for as long as the weights are as they are.
    """
    if risk.device.type != "cpu" or risk.sharded or all(w.ndim < 3 for w in risk.weights.values()):
        return None
    names = tuple(layer.name for layer in risk.layers)
    if names not in risk.shared.programs:
        risk.shared.programs[names] = _found(risk)
    return risk.shared.programs[names]


@torch.no_grad()
def _found(risk: Risk) -> Program | None:
    first = risk.place_for_speed(next(iter(risk.batches)))
    batch, numbers = first.select(torch.arange(3) % len(first)), [1]
    try:
        if not (isinstance(batch.inputs, tuple) and len(batch.inputs) == 1) or risk.precision.passes is not None:
            raise UnknownError("several inputs, or passes of lower precision")
        model = shared_copy(risk.model)  # whose code may keep what it is traced with
        if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
            raise UnknownError("hooks")
        found = _Writer(risk, model, fx.Tracer().trace(model)).program()
        for _, value, _ in found.run(batch):
            if isinstance(value, Tensor) and value.is_floating_point():
                numbers.append(value.numel() // len(batch))
        expected = risk.outputs({}, batch)
        for outputs in (found.outputs(batch), torch.cat([found.outputs(one) for one in batch.split(1)])):
            if not torch.allclose(outputs, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item()):
                raise UnknownError("other outputs")
    except Exception as error:  # a network may do anything that cannot be followed
        log.info("passes by the network's own code: %r", error)
        return None
    most = HELD // max(numbers)
    return replace(found, at_once=most if most >= LEAST else None)


class _Writer:
    """Goes through the nodes of a graph and gives values their numbers."""

    def __init__(self, risk: Risk, model: nn.Module, graph: fx.Graph):
        self.model, self.graph = model, graph
        self.known = {weight_key(w) for w in risk.weights.values()}
        self.place = {node: place for place, node in enumerate(graph.nodes)}
        self.numbers: dict[fx.Node, int] = {}
        self.steps: list[Step] = []
        self.makers: dict[int, Step] = {}
        self.depends: set[int] = set()
        self.uses = 0

    def program(self) -> Program:
        for node in self.graph.nodes:
            if node.op == "output":
                break
            if node.op == "placeholder":
                if self.numbers:
                    raise UnknownError("several inputs")
                self.numbers[node] = 0
            else:
                self._operation(node)
        (end,) = node.args
        if not isinstance(end, fx.Node):
            raise UnknownError("outputs that are not one tensor")
        read = {self.numbers[end]}
        for step in reversed(self.steps):
            step.last = [n for n in {*step.inputs, step.output} if n not in read]
            read.update(step.inputs)
        return Program(self.steps, self.numbers[end])

    def _operation(self, node: fx.Node) -> None:
        module = self.model.get_submodule(node.target) if node.op == "call_module" else None
        written = self._written(node, module)
        first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        plain = node.op in ("call_function", "call_method")
        if first is not None and (type(module) is nn.ReLU or (plain and node.target in RECTIFIERS)):
            self._add(node, Rectifier((self.numbers[first],), self._new(node), self._ours(first)))
        elif type(module) in NOTHING and first is not None:
            self._add(node, Other((self.numbers[first],), self._new(node), call=lambda given: given[0]))
        elif type(module) in (*CONVOLUTIONS, nn.Linear) and getattr(module, "padding_mode", "zeros") == "zeros" \
                and not isinstance(getattr(module, "padding", 0), str):
            self._product(node, module, first)
        elif type(module) in NORMALISATIONS and self._folded(node, module, first):
            pass
        elif plain and node.target in SUMS and not node.kwargs and [type(x) for x in node.args] == [fx.Node] * 2:
            a, b = node.args
            if not self._ours(a) and self._ours(b):
                a, b = b, a
            self._add(node, Sum((self.numbers[a], self.numbers[b]), self._new(node), self._ours(a)))
        else:
            self._other(node, module, written)

    def _new(self, node: fx.Node) -> int:
        self.numbers[node] = len(self.steps) + 1
        return self.numbers[node]

    def _add(self, node: fx.Node, step: Step) -> None:
        step.needed = tuple(n in self.depends for n in step.inputs)
        if any(step.needed) or (isinstance(step, Product) and step.use is not None):
            self.depends.add(step.output)
        self.steps.append(step)
        self.makers[step.output] = step

    def _ours(self, node: fx.Node) -> bool:
        """Whether the value may be written over by the only operation that reads it: no step keeps it."""
        return len(node.users) == 1 and isinstance(self.makers.get(self.numbers[node]), (Product, Sum))

    def _written(self, node: fx.Node, module: nn.Module | None) -> bool:
        """Whether it writes over its input; that is a value of its own here, so nothing may read the old one for the
        new one."""
        name = node.target if isinstance(node.target, str) else node.target.__name__
        if module is not None:
            written = getattr(module, "inplace", False) and type(module) not in NOTHING
        else:
            written = node.op != "get_attr" and (
                node.kwargs.get("inplace", False) or "out" in node.kwargs or name in WRITING
                or (name.endswith("_") and not name.endswith("__")))
        if written and module is None and node.target not in (*RECTIFIERS, *SUMS):
            raise UnknownError(f"{name!r} in place")
        if written and any(self.place[other] > self.place[node] for other in node.args[0].users):
            raise UnknownError(f"{name!r} in place on what is read later")
        return written

    def _product(self, node: fx.Node, module: nn.Module, first: fx.Node) -> None:
        convolution = CONVOLUTIONS.get(type(module))
        setting = (module.stride, module.padding, module.dilation, module.groups) if convolution else None
        use = None
        if weight_key(module.weight) in self.known:
            use, self.uses = self.uses, self.uses + 1
        self._add(node, Product(
            (self.numbers[first],), self._new(node), weight=module.weight.detach(), use=use, setting=setting,
            bias=None if module.bias is None else module.bias.detach(), operation=convolution or linear))

    def _folded(self, node: fx.Node, module: nn.Module, first: fx.Node) -> bool:
        """Whether the normalisation becomes one with the convolution before it."""
        made = self.makers.get(self.numbers[first])
        if len(first.users) != 1 or not isinstance(made, Product) or not made.setting or made.scale is not None:
            return False
        with torch.no_grad():
            found = normalisation(made.weight, module.running_mean, module.running_var, module.weight, module.bias,
                                  module.training, eps=module.eps)
            if found is None:
                return False
            made.scale, made.shift = (t.reshape(-1, *[1] * (made.weight.ndim - 2)) for t in found)
        self.numbers[node] = made.output
        return True

    def _other(self, node: fx.Node, module: nn.Module | None, written: bool) -> None:
        nodes = list(dict.fromkeys(node.all_input_nodes))
        if node.op == "get_attr":
            value = operator.attrgetter(node.target)(self.model)
            value = value.detach() if isinstance(value, Tensor) else value
            self._add(node, Other((), self._new(node), call=lambda _: value))
            return
        function = module if module is not None else node.target
        places = {other: place for place, other in enumerate(nodes)}

        def call(given: Sequence[Any]) -> Any:
            if written:
                given = [x.clone() if isinstance(x, Tensor) else x for x in given]
            args, kwargs = map_arg((node.args, dict(node.kwargs)), lambda other: given[places[other]])
            if node.op == "call_method":
                return getattr(args[0], node.target)(*args[1:], **kwargs)
            return function(*args, **kwargs)
        self._add(node, Other(tuple(self.numbers[other] for other in nodes), self._new(node), call=call))
