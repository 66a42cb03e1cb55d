"""The loss as a function of the weights of the selected layers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from genmeasure.checkpoints.sharded import WHOLE, is_sharded, reshard
from genmeasure.data.batches import Batch, Batches, map_tensors
from genmeasure.engine import Engine
from genmeasure.errors import InputError, second_derivative
from genmeasure.layers import Layer, forward
from genmeasure.losses import IGNORED, Loss
from genmeasure.precision import FLOAT32, Precision
from genmeasure.shared import Shared

FORWARD, GRADIENT, HESSIAN_PRODUCT = 1.0, 3.0, 9.0
"""Cost in forward-equivalents: a backward pass is two; differentiating a gradient triples its cost."""

Weights = Mapping[str, Tensor]
"""Weights of layers by the layer's name."""


class _OfBatch(nn.Module):
    """The model as a module that takes a batch, for `functional_call`.

    Its outputs leave in the dtype of the weights, so that no loss is computed in fewer bits.
    """

    def __init__(self, model: nn.Module, precision: Precision, device: torch.device):
        super().__init__()
        self.model, self.precision, self.device = model, precision, device

    def forward(self, batch: Batch) -> Tensor:
        with self.precision.autocast(self.device):
            outputs = forward(self.model, batch)
        return outputs if self.precision.passes is None else outputs.to(self.precision.weights)


def scale(loss: Loss, data: Batches) -> float:
    """Examples per prediction of a data set, which turns a mean over examples into one over predictions.

    1 where every example is one prediction. Raises `InputError` where there is none at all.
    """
    if loss.predictions is None:
        return 1.0
    predictions = sum(int(loss.predictions(targets).sum()) for targets in data.targets)
    if predictions == 0:
        raise InputError(f"no token of the data set {data.name!r} is labelled for the loss {loss.name!r}; give at "
                         f"least one token a label other than {IGNORED}")
    return data.size / predictions


def _channels_last(batch: Batch) -> Batch:
    def last(t: Tensor) -> Tensor:
        return t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t
    return replace(batch, inputs=map_tensors(batch.inputs, last))


def nodes(tensors: Iterable[Tensor]) -> Iterator[torch.autograd.graph.Node]:
    """Every node of the graph that `tensors` were computed in, once."""
    waiting, seen = [t.grad_fn for t in tensors], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [before for before, _ in node.next_functions]


class Risk:
    """Losses and gradients of a model over a data set, as functions of the weights of `layers`.

    The loss of an example is the loss's own times `scale`: the loss of a sequence is the sum over its tokens divided by
    the mean number of tokens of a sequence, so that the mean over examples is the mean over all tokens of the data set,
    whatever the batches.

    Weights that are not given keep the model's values. The model is in evaluation mode and is never changed. Weights
    of a sharded model stay on their ranks (`checkpoints.sharded.whole` gathers one); no others can take their places.
    `passes` counts what was spent so far, in forward passes over the whole data set. shared: what is known of these
    losses at the present weights; nothing yet by default. precision: of passes through the model. offload: see
    `saved`.
    """

    def __init__(self, model: nn.Module, loss: Loss, layers: Sequence[Layer], batches: Batches, engine: Engine,
                 shared: Shared | None = None, precision: Precision = FLOAT32, offload: bool = False):
        self.model, self.precision, self.offload = model, precision, offload
        self.loss, self.layers, self.batches, self.engine = loss, tuple(layers), batches, engine
        self.sharded = is_sharded(model)
        reshard(model)
        self.weights: dict[str, Tensor] = {x.name: model.get_parameter(x.parameter).detach() for x in layers}
        self._paths = {x.name: f"model.{x.parameter}" for x in layers}
        self.scale = scale(loss, batches)
        some = next(iter(self.weights.values()))
        self.device, self.dtype = some.device, some.dtype
        self._model = _OfBatch(model, precision, self.device)
        self.shared = Shared() if shared is None else shared

    def restricted(self, layers: Sequence[Layer]) -> Risk:
        """The same risk as a function of these layers' weights alone; what it spends counts here as well."""
        risk = Risk(self.model, self.loss, layers, self.batches, self.engine, self.shared, self.precision,
                    self.offload)
        risk.spend = self.spend
        return risk

    def spend(self, cost: float, examples: int) -> None:
        """Record a computation that costs `cost` forward-equivalents on each of `examples`; its share of each of
        several processes that do the same."""
        self.shared.spend(cost * examples / self.batches.size / self.engine.copies)

    @property
    def passes(self) -> float:
        return self.shared.passes

    def place(self, batch: Batch) -> Batch:
        """`batch` on the weights' device, floating-point inputs in their dtype."""
        return batch.to(self.device, self.dtype)

    def place_for_speed(self, batch: Batch) -> Batch:
        """As `place`, with the channels of images last in memory where that is faster and the network runs like that.

        Numbers and shapes are the same. The kernels of oneDNN work in blocks of channels: convolutions of few channels
        take up to five times as long on images whose channels come first.
        """
        batch = self.place(batch)
        return _channels_last(batch) if self._channels_may_be_last else batch

    @property
    def _channels_may_be_last(self) -> bool:
        fast = self.device.type == "cpu" and self.dtype == torch.float32 and torch.backends.mkldnn.is_available()
        if not fast or all(w.ndim != 4 for w in self.weights.values()):
            return False
        return self.shared.remember("channels last", self._runs_with_channels_last)

    def _runs_with_channels_last(self) -> bool:
        """Tried on two examples: `view` refuses some tensors in that order, `as_strided` takes them for others."""
        batch = self.place(next(iter(self.batches)).select(slice(2)))
        self.spend(2 * FORWARD, len(batch))
        with torch.no_grad():
            expected = self.outputs({}, batch)
            try:
                found = self.outputs({}, _channels_last(batch))
            except RuntimeError:
                return False
        return torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())

    def outputs(self, weights: Weights, batch: Batch) -> Tensor:
        """[batch, classes], or [batch, ...] as the loss takes them; not scaled.

        Raises `InputError` for weights that should replace those of a sharded model.
        """
        if self.sharded:
            if weights:
                raise InputError("the weights of a sharded model cannot be replaced, nor differentiated by; take what "
                                 f"needs forward passes alone, or {WHOLE}")
            with torch.inference_mode(False), torch.no_grad():  # what it gathers into must serve training afterwards
                return forward(self.model, batch)
        if not weights:
            return self._model(batch)
        return functional_call(self._model, {self._paths[k]: w for k, w in weights.items()}, (batch,))

    def outputs_of_state(self, state: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """As `outputs`, with any parameters and buffers replaced, by their paths in the state dict."""
        if self.sharded:
            return self.outputs(state, batch)
        return functional_call(self._model, {f"model.{k}": t for k, t in state.items()}, (batch,))

    def losses(self, weights: Weights, batch: Batch) -> Tensor:
        """[batch]."""
        return self.losses_of(self.outputs(weights, batch), batch)

    def losses_of(self, outputs: Tensor, batch: Batch) -> Tensor:
        """[batch], from the model's outputs."""
        return self.scale * self.loss(outputs, batch.targets)

    def residual_losses(self, weights: Weights, batch: Batch) -> Tensor:
        """[batch], the losses linearised in the outputs at the present weights: <dl/df, f(weights)>, dl/df constant.

        Their Hessian is the residual H - G of the Hessian of the losses over its Gauss-Newton part.
        """
        with torch.enable_grad():
            here = self.outputs({}, batch).detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.scale * self.loss(here, batch.targets).sum(), here)
        return (slope * self.outputs(weights, batch)).flatten(1).sum(1)

    @torch.no_grad()
    def batch_loss(self, batch: Batch, weights: Weights | None = None) -> Tensor:
        """Sum of the losses of a batch.

        From the outputs on in float64: the loss of a well-fitted example is a small difference of larger numbers, and
        its rounding would not average out over draws.
        """
        batch = self.place(batch)
        self.spend(FORWARD, len(batch))
        return self.scale * self.loss(self.outputs(weights or {}, batch).double(), batch.targets).sum()

    def checked(self, values: Tensor, batch: Batch, what: str) -> Tensor:
        """`values` [batch, ...] if all are finite, else `InputError` that names the example and its batch.

        what: the quantity, as it is called in a sentence (`loss`, `Hessian trace`).
        """
        bad = (~torch.isfinite(values.detach())).reshape(len(values), -1).any(1).nonzero().squeeze(1)
        if len(bad):
            first = int(bad[0] if batch.rows is None else batch.rows[bad[0].cpu()])
            others = f" and {len(bad) - 1} others of the batch" if len(bad) > 1 else ""
            raise InputError(f"the {what} is NaN or infinite on example {first} of {self.batches.name!r} (batch "
                             f"{batch.index}){others}; check the inputs, or measure with --dtype float64")
        return values

    @contextlib.contextmanager
    def unrounded(self) -> Iterator[None]:
        """Passes through the model in the precision of the weights, while the context lasts.

        For what stands in a difference against the mean of many moved weights: these are rounded one way and the other,
        the present weights always the same way.
        """
        self._model.precision = FLOAT32
        try:
            yield
        finally:
            self._model.precision = self.precision

    def saved(self) -> contextlib.AbstractContextManager:
        """Around a forward pass and the backward passes through which it is differentiated again: with `offload` the
        host keeps what they need, and gives it back when they need it."""
        return torch.autograd.graph.save_on_cpu() if self.offload else contextlib.nullcontext()

    def check_precision(self) -> None:
        """Raises `InputError` where passes are rounded too much for second derivatives and single examples' gradients.
        """
        if self.precision.passes is not None:
            raise InputError(f"dtype={self.precision.name!r} came for second derivatives or gradients of single "
                             "examples, which need more than the 8 bits of its passes through the model; measure with "
                             "--dtype float32, or take a measure of forward passes alone, such as "
                             "hessian-trace:route=forward,forward_sigma=0.1")

    @functools.cached_property
    def twice_differentiable(self) -> bool:
        """True; raises `InputError` where the model holds a function marked with `once_differentiable`.

        torch leaves the second derivative through such a function out without a word where it also has other ways to
        the weights, so that a Hessian product would be wrong.
        """
        self.check_precision()
        batch = self.place(next(iter(self.batches)).select(slice(1)))
        point = {k: w.detach().requires_grad_() for k, w in self.weights.items()}
        with second_derivative(), torch.enable_grad():
            losses = self.losses(point, batch)
            slopes = torch.autograd.grad(losses.sum(), list(point.values()), create_graph=True, materialize_grads=True)
            if any(node.name() == "torch::autograd::Error" for node in nodes(slopes)):
                raise RuntimeError("trying to differentiate twice a function that was marked with once_differentiable")
        return True

    def value(self) -> float:
        """Mean loss over the data set."""
        return self.engine.sum(self.batch_loss, self.batches).item() / self.batches.size

    def batch_gradient(self, batch: Batch) -> dict[str, Tensor]:
        """Gradient of the sum of the losses of a batch."""
        batch = self.place(batch)
        self.spend(GRADIENT, len(batch))
        point = {k: w.clone().requires_grad_() for k, w in self.weights.items()}
        with torch.enable_grad(), self.saved():
            slopes = torch.autograd.grad(self.losses(point, batch).sum(), list(point.values()), materialize_grads=True)
        return dict(zip(point, slopes, strict=True))

    def gradient(self) -> dict[str, Tensor]:
        """Gradient of the mean loss, by layer."""
        total = self.engine.sum(self.batch_gradient, self.batches)
        return {k: g / self.batches.size for k, g in total.items()}
