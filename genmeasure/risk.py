"""The loss as a function of the weights of the selected layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from genmeasure.data.batches import Batch, Batches
from genmeasure.engine import Engine
from genmeasure.layers import Layer, forward
from genmeasure.losses import Loss

FORWARD, GRADIENT, HESSIAN_PRODUCT = 1.0, 3.0, 9.0
"""Cost in forward-equivalents: a backward pass is two; differentiating a gradient triples its cost."""

Weights = Mapping[str, Tensor]
"""Weights of layers by the layer's name."""


class _OfBatch(nn.Module):
    """The model as a module that takes a batch, for `functional_call`."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return forward(self.model, batch)


class Risk:
    """Losses and gradients of a model over a data set, as functions of the weights of `layers`.

    Weights that are not given keep the model's values. The model is in evaluation mode and is never changed.
    `passes` counts what was spent so far, in forward passes over the whole data set.
    """

    def __init__(self, model: nn.Module, loss: Loss, layers: Sequence[Layer], batches: Batches, engine: Engine):
        self._model = _OfBatch(model)
        self.loss, self.layers, self.batches, self.engine = loss, tuple(layers), batches, engine
        self.weights: dict[str, Tensor] = {x.name: model.get_parameter(x.parameter).detach() for x in layers}
        self._paths = {x.name: f"model.{x.parameter}" for x in layers}
        some = next(iter(self.weights.values()))
        self.device, self.dtype = some.device, some.dtype
        self.passes = 0.0

    def spend(self, cost: float, examples: int) -> None:
        """Record a computation that costs `cost` forward-equivalents on each of `examples`."""
        self.passes += cost * examples / self.batches.size

    def place(self, batch: Batch) -> Batch:
        """`batch` on the weights' device, floating-point inputs in their dtype."""
        return batch.to(self.device, self.dtype)

    def outputs(self, weights: Weights, batch: Batch) -> Tensor:
        """[batch, classes]."""
        return functional_call(self._model, {self._paths[k]: w for k, w in weights.items()}, (batch,))

    def losses(self, weights: Weights, batch: Batch) -> Tensor:
        """[batch]."""
        return self.loss(self.outputs(weights, batch), batch.targets)

    def residual_losses(self, weights: Weights, batch: Batch) -> Tensor:
        """[batch], the losses linearised in the outputs at the present weights: <dl/df, f(weights)>, dl/df constant.

        Their Hessian is the residual H - G of the Hessian of the losses over its Gauss-Newton part.
        """
        with torch.enable_grad():
            here = self.outputs({}, batch).detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.loss(here, batch.targets).sum(), here)
        return (slope * self.outputs(weights, batch)).flatten(1).sum(1)

    @torch.no_grad()
    def batch_loss(self, batch: Batch, weights: Weights | None = None) -> Tensor:
        """Sum of the losses of a batch.

        From the outputs on in float64: the loss of a well-fitted example is a small difference of larger numbers, and
        its rounding would not average out over draws.
        """
        batch = self.place(batch)
        self.spend(FORWARD, len(batch))
        return self.loss(self.outputs(weights or {}, batch).double(), batch.targets).sum()

    def value(self) -> float:
        """Mean loss over the data set."""
        return self.engine.sum(self.batch_loss, self.batches).item() / self.batches.size

    def batch_gradient(self, batch: Batch) -> dict[str, Tensor]:
        """Gradient of the sum of the losses of a batch."""
        batch = self.place(batch)
        self.spend(GRADIENT, len(batch))
        point = {k: w.clone().requires_grad_() for k, w in self.weights.items()}
        with torch.enable_grad():
            slopes = torch.autograd.grad(self.losses(point, batch).sum(), list(point.values()))
        return dict(zip(point, slopes, strict=True))

    def gradient(self) -> dict[str, Tensor]:
        """Gradient of the mean loss, by layer."""
        total = self.engine.sum(self.batch_gradient, self.batches)
        return {k: g / self.batches.size for k, g in total.items()}
