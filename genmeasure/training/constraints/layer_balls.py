"""Every layer stays in a ball around its start."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genmeasure.errors import InputError, unknown
from genmeasure.training.context import Context, unwrapped
from genmeasure.training.pieces import Constraint, Recipe

HEAD_CENTERS = ("zero", "start")


@dataclass(frozen=True)
class LayerBalls(Recipe[Constraint]):
    """‖W_i - W_i,start‖_F <= radius * growth^(i-1) for the weight tensors i = 1, 2, … of the extractor.

    Constraint of Li, Zhang 2021, arXiv:2111.04578 (geometric radii) and Ju, Li, Zhang 2022, arXiv:2206.02659,
    Algorithm 1. A layer is a tensor with two or more dimensions; i counts them in registration order. Biases and other
    one-dimensional tensors are free; `Projection.report` says what applies to each tensor.

    radius: in units of weight; 0 freezes a layer at its start. A mapping gives each layer its own: its keys are
    parameter names, module names or patterns such as "layer4.*", the first that fits counts, and layers that none
    fits are free. growth: factor from one layer to the next, above 0; goes with a single radius.
    head_radius: for the weights of the head; None leaves it free. head_about: center of the head's ball, "zero" (its
    start is usually random) or "start".
    batch_norm: also clip every entry of gamma/sqrt(running_var + eps) to within the layer's radius of its start.
    """

    radius: float | Mapping[str, float] = 1.0
    growth: float = 1.0
    head_radius: float | None = 8.0
    head_about: str = "zero"
    batch_norm: bool = False

    def __post_init__(self):
        radii = [*self.radius.values()] if isinstance(self.radius, Mapping) else [self.radius]
        for radius in (*radii, 0.0 if self.head_radius is None else self.head_radius):
            if not radius >= 0:
                raise InputError(f"the radius {radius} came; it must be at least 0")
        if not self.growth > 0:
            raise InputError(f"growth={self.growth} came; the factor between layers must be above 0")
        if isinstance(self.radius, Mapping) and self.growth != 1:
            raise InputError(f"growth={self.growth} came with a radius for each layer; growth goes with a single "
                             "radius only")
        if self.head_about not in HEAD_CENTERS:
            raise unknown("center of the head's ball", self.head_about, HEAD_CENTERS)

    def prepare(self, context: Context) -> Projection:
        """Raises `InputError` for a key of the mapping that fits no layer, or when nothing at all is constrained."""
        scales = {f"{prefix}.weight": prefix for prefix, module in context.model.named_modules()
                  if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None}
        radii = _Radii(self.radius, self.growth)
        balls, clips, free = [], [], []
        for name, p in context.model.named_parameters():
            start, layer = context.start[name], p.ndim >= 2
            head = layer and context.in_head(name)
            constrained = layer or (self.batch_norm and name in scales)
            radius = self.head_radius if head else radii.of(name, layer) if constrained else None
            if radius is None or not p.requires_grad:
                free.append(name)
            elif head and self.head_about == "zero":
                balls.append(Ball(name, torch.zeros_like(start), radius, "zero"))
            elif layer:
                balls.append(Ball(name, start, radius))
            else:
                module = context.model.get_submodule(scales[name])
                center = start / _deviation(context.start[f"{scales[name]}.running_var"], module.eps)
                clips.append(Clip(scales[name], center, radius))
        radii.check(name for name, p in context.model.named_parameters() if p.ndim >= 2)
        if not (balls or clips):
            raise InputError(f"no trainable layer of {type(context.model).__name__} is constrained; give a radius for "
                             "at least one of its weight tensors")
        return Projection(tuple(balls), tuple(clips), tuple(free))


class _Radii:
    """The radius of each tensor, met in registration order."""

    def __init__(self, radius: float | Mapping[str, float], growth: float):
        self.radius, self.growth, self.depth = radius, growth, 0
        self.unused = set(radius) if isinstance(radius, Mapping) else set()

    def of(self, name: str, layer: bool) -> float | None:
        if not isinstance(self.radius, Mapping):
            self.depth += layer
            return self.radius * self.growth ** max(0, self.depth - 1)
        key = next((k for k in self.radius if name.startswith(f"{k}.") or fnmatch.fnmatchcase(name, k)), None)
        self.unused.discard(key)
        return None if key is None else self.radius[key]

    def check(self, layers) -> None:
        if self.unused:
            raise unknown("layer", min(self.unused), layers)


@dataclass(frozen=True, eq=False)
class Ball:
    """‖W - center‖_F <= radius for one weight tensor."""

    name: str
    center: Tensor
    radius: float
    about: str = "start"


@dataclass(frozen=True, eq=False)
class Clip:
    """|gamma/sqrt(running_var + eps) - center| <= radius in every entry, for the normalisation layer `module`."""

    module: str
    center: Tensor
    radius: float


@dataclass(frozen=True, eq=False)
class Projection(Constraint):
    """`LayerBalls` for known tensors. free: names of the tensors that nothing applies to."""

    balls: tuple[Ball, ...]
    clips: tuple[Clip, ...] = ()
    free: tuple[str, ...] = ()

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> None:
        model = unwrapped(model)
        parameters = dict(model.named_parameters())
        for ball in self.balls:
            project_to_ball(parameters[ball.name], ball.center, ball.radius)
        for clip in self.clips:
            module = model.get_submodule(clip.module)
            clip_scale(module.weight, _deviation(module.running_var, module.eps), clip.center, clip.radius)

    def report(self) -> list[dict[str, Any]]:
        """One row per tensor: name, rule ("ball", "clip" or "free"), about ("start", "zero" or ""), radius."""
        return [*({"name": b.name, "rule": "ball", "about": b.about, "radius": b.radius} for b in self.balls),
                *({"name": f"{c.module}.weight", "rule": "clip", "about": "start", "radius": c.radius}
                  for c in self.clips),
                *({"name": name, "rule": "free", "about": "", "radius": None} for name in self.free)]


@torch.no_grad()
def project_to_ball(weight: Tensor, center: Tensor, radius: float) -> None:
    """The nearest point in place: W <- C + (W - C) min(1, radius/‖W - C‖_F); radius 0 gives C exactly."""
    if radius == 0:
        weight.copy_(center)
        return
    difference = weight - center
    norm = torch.linalg.vector_norm(difference)
    # weights are stored with rounding: without this allowance a projected tensor would be moved again and again
    rounding = 8 * torch.finfo(weight.dtype).eps * (radius + torch.linalg.vector_norm(center))
    weight.copy_(torch.where(norm > radius + rounding, center + difference * (radius / norm), weight))


@torch.no_grad()
def clip_scale(gamma: Tensor, deviation: Tensor, center: Tensor, radius: float) -> None:
    """gamma in place, so that every entry of gamma/deviation is within radius of center."""
    scale = gamma / deviation
    clipped = torch.clamp(scale, center - radius, center + radius)
    rounding = 8 * torch.finfo(gamma.dtype).eps * (radius + center.abs())
    gamma.copy_(torch.where((scale - center).abs() > radius + rounding, clipped * deviation, gamma))


def _deviation(variance: Tensor, eps: float) -> Tensor:
    return (variance + eps).sqrt()
