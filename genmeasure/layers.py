"""What a layer is: which weights are measured, in which order, and what follows them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from genmeasure.data.batches import Batch
from genmeasure.errors import InputError, unknown
from genmeasure.matrix_product import faster_products

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def transposed(module: nn.Module) -> bool:
    """Whether the module is transformers' `Conv1D` (GPT-2): a linear layer, no convolution, with a weight [in, out].

    Known by its looks, so that transformers need not be installed.
    """
    weight = getattr(module, "weight", None)
    return (type(module).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.ndim == 2
            and getattr(module, "nf", None) == weight.shape[1])


@dataclass(frozen=True)
class Layer:
    """A weight tensor that maps linearly from its layer's input to its output.

    name: the module's path (with `.in_proj` for an attention's). parameter: the weight's path in the state dict.
    input_shape and output_shape: of one example. batch_norm: path of the BatchNorm that takes this layer's output
    directly, or None. tied: other paths of the same weight (an embedding's, for one), through which derivatives with
    respect to it go as well.
    """

    name: str
    parameter: str
    module: nn.Module
    input_shape: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()
    batch_norm: str | None = None
    head: bool = False
    tied: tuple[str, ...] = ()

    @property
    def convolution(self) -> bool:
        return isinstance(self.module, CONVOLUTIONS)

    def matrix(self, weight: Tensor) -> Tensor:
        """`weight`, or what has its shape, as a matrix [out, rest]; see `matrix`."""
        return weight.T if transposed(self.module) else matrix(weight)

    @property
    def width(self) -> int:
        """The larger of the numbers of input and output units (channels times positions for a convolution)."""
        if self.convolution:
            return max(math.prod(self.input_shape), math.prod(self.output_shape))
        return max(self.module.get_parameter(self.parameter.rsplit(".", 1)[-1]).shape)


@contextlib.contextmanager
def differentiable() -> Iterator[None]:
    """Attention without fused kernels, which have neither second derivatives nor forward mode."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def forward(model: nn.Module, batch: Batch) -> Tensor:
    """The model's outputs [batch, ...]: a tensor, the first of a tuple, or `.logits`."""
    with differentiable(), faster_products(model):
        out = model(**batch.inputs) if isinstance(batch.inputs, dict) else model(*batch.inputs)
    out = getattr(out, "logits", out)
    return out[0] if isinstance(out, (tuple, list)) else out


def find_layers(model: nn.Module, batch: Batch, head: str | None = None) -> tuple[Layer, ...]:
    """The selected layers in the order in which a forward pass runs them.

    Selected is every weight of `Linear`, `Conv1d`, `Conv2d` and `Conv3d`, the projections of `MultiheadAttention` and
    transformers' `Conv1D`; a weight shared by two of these modules counts once, under the name of the first that runs,
    and a module that never runs is left out, as are weights that are not floating-point numbers or not at hand.
    head: path of the head's module; by default the selected layer that runs last.
    """
    order: list[str] = []
    last = ""
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    outputs: dict[int, tuple[str, Tensor, int]] = {}
    normed: dict[str, str] = {}
    names = {module: name for name, module in model.named_modules()}

    def record(module: nn.Module, inputs: tuple, output: object) -> None:
        nonlocal last
        name = names[module]
        if isinstance(module, BATCH_NORMS):
            before = outputs.get(id(inputs[0]))
            if before and before[2] == inputs[0]._version:  # unchanged in place since the layer gave it out
                normed.setdefault(before[0], name)
            return
        last = f"{name}.out_proj" if isinstance(module, nn.MultiheadAttention) else name
        if name not in shapes:
            order.append(name)
            known = bool(inputs) and isinstance(output, Tensor)
            shapes[name] = (tuple(inputs[0].shape[1:]), tuple(output.shape[1:])) if known else ((), ())
            if isinstance(module, nn.MultiheadAttention):  # runs its projection without calling the module
                order.append(f"{name}.out_proj")
                shapes[order[-1]] = ((), ())
        if isinstance(output, Tensor):
            outputs[id(output)] = (name, output, output._version)  # kept alive, so that no other tensor takes its id

    watched = (nn.Linear, *CONVOLUTIONS, nn.MultiheadAttention, *BATCH_NORMS)
    hooks = [m.register_forward_hook(record) for m in model.modules() if isinstance(m, watched) or transposed(m)]
    try:
        with torch.inference_mode(False), torch.no_grad():  # tensors of inference mode do not count their changes
            forward(model, batch)
    finally:
        for hook in hooks:
            hook.remove()

    paths: dict[int, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        paths.setdefault(id(parameter), []).append(path)
    layers, seen = [], set()
    for name in order:
        module = model.get_submodule(name)
        for suffix in ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            parameter = getattr(module, suffix, None)
            if _measurable(parameter) and id(parameter) not in seen:
                seen.add(id(parameter))
                path = f"{name}.{suffix}" if name else suffix
                shown = name if suffix == "weight" else path.removesuffix("_weight")
                tied = tuple(other for other in paths[id(parameter)] if other != path)
                layers.append(Layer(shown, path, module, *shapes[name], normed.get(name), tied=tied))
    if not layers:
        raise InputError(f"the model {type(model).__name__} ran no Linear or Conv layer; "
                         "there is nothing to measure without one")
    wanted = last if head is None else head
    weight = f"{wanted}.weight".removeprefix(".")
    chosen = next((x for x in layers if x.name == wanted), None) or next((x for x in layers if weight in x.tied), None)
    if chosen is None and head is not None:
        raise unknown("head layer", head, [layer.name for layer in layers])
    chosen = chosen or layers[-1]
    return tuple(replace(x, head=x is chosen) for x in layers)


def _measurable(parameter: object) -> bool:
    """A weight of floating-point numbers that are at hand; not quantised, and not held elsewhere."""
    return isinstance(parameter, nn.Parameter) and parameter.is_floating_point() and not parameter.is_meta


def matrix(weight: Tensor) -> Tensor:
    """A weight as a matrix [out, rest]; a convolution kernel is reshaped, which is not its linear map."""
    return weight.reshape(weight.shape[0], -1)


def batch_norm_scale(layer: Layer, state: Mapping[str, Tensor], model: nn.Module) -> Tensor | None:
    """gamma / sqrt(var + eps) [out] of the BatchNorm behind `layer`, from `state`; None where there is none."""
    norm = layer.batch_norm
    if norm is None or f"{norm}.running_var" not in state:
        return None
    scale = (state[f"{norm}.running_var"] + model.get_submodule(norm).eps).rsqrt()
    return scale * state[f"{norm}.weight"] if f"{norm}.weight" in state else scale


def folded(layer: Layer, state: Mapping[str, Tensor], model: nn.Module) -> Tensor:
    """The weight with the BatchNorm behind it folded in (measures.md 2): diag(gamma / sqrt(var + eps)) W."""
    weight, scale = state[layer.parameter], batch_norm_scale(layer, state, model)
    if scale is None:
        return weight
    return weight * (scale if transposed(layer.module) else scale.reshape(-1, *[1] * (weight.ndim - 1)))
