"""Every layer stays in a ball around its start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genmeasure.errors import InputError, unknown
from genmeasure.training.constraints.projections import (
    clip_scale,
    frobenius,
    project_rows,
    project_to_ball,
    rescale_rows,
    row_sums,
)
from genmeasure.training.context import Context, unwrapped
from genmeasure.training.groups import by_layer, check_schedule, layer_weights, output_dimension
from genmeasure.training.pieces import Constraint, Recipe

HEAD_CENTERS = ("zero", "start")
RELATIVE_TO = ("start", "plain")
NORMS: dict[str, Callable[..., Tensor]] = {"frobenius": frobenius, "mars": row_sums, "l1-row": row_sums}
ROW_PROJECTIONS = {"mars": rescale_rows, "l1-row": project_rows}


@dataclass(frozen=True)
class LayerBalls(Recipe[Constraint]):
    """‖W_i - W_i,start‖ <= radius * growth^(i-1) for the layers i = 1, 2, … of the extractor.

    Constraint of Li, Zhang 2021, arXiv:2111.04578 (geometric radii), Ju, Li, Zhang 2022, arXiv:2206.02659, Algorithm 1,
    and, with one radius for all, Gouk, Hospedales, Pontil 2021, arXiv:2002.08253. A layer is a weight as in
    `groups.layer_weights`; biases, embeddings, normalisation layers and other tensors are free, unless a key of
    `radius` fits one with two or more dimensions. `Projection.report` says what applies to each tensor.

    radius: in units of weight; 0 freezes a layer at its start. growth, groups and a mapping in place of one radius: as
    in `groups.by_layer`. head_radius: for the weights of the head; None leaves it free. head_about: center of the
    head's ball, "zero" (its start is usually random) or "start".
    batch_norm: also clip every entry of gamma/sqrt(running_var + eps) to within the layer's radius of its start.
    norm: "frobenius"; "mars", the maximum absolute row sum, by rescaling rows; or "l1-row", the same set, by the
    nearest point of every row.
    relative_to: None; "start" multiplies all radii by the norm of the start's layer (for row sums, of each row);
    "plain" by the norm of the difference to the center of the layer after plain fine-tuning with the same settings,
    which is carried out first: with a factor below 1, the distances that Li and Zhang fit their radii to.
    """

    radius: float | Mapping[str, float] = 1.0
    growth: float = 1.0
    head_radius: float | None = 8.0
    head_about: str = "zero"
    batch_norm: bool = False
    groups: str = "layers"
    norm: str = "frobenius"
    relative_to: str | None = None

    def __post_init__(self):
        radii = [*self.radius.values()] if isinstance(self.radius, Mapping) else [self.radius]
        for radius in (*radii, 0.0 if self.head_radius is None else self.head_radius):
            if not radius >= 0:
                raise InputError(f"the radius {radius} came; it must be at least 0")
        check_schedule(self.radius, self.growth, self.groups)
        for what, name, known in (("center of the head's ball", self.head_about, HEAD_CENTERS),
                                  ("norm of a layer's ball", self.norm, NORMS)):
            if name not in known:
                raise unknown(what, name, known)
        if self.relative_to not in (None, *RELATIVE_TO):
            raise unknown("unit of the radii", self.relative_to, RELATIVE_TO)

    def prepare(self, context: Context) -> Projection:
        """Raises `InputError` for a key or groups that fit no layer, when nothing at all is constrained, and for
        radii relative to plain fine-tuning outside of `fine_tune`."""
        layers, plain = layer_weights(context.model), self._plain(context)
        matrices = {**dict.fromkeys(_matrices(context.model) if isinstance(self.radius, Mapping) else ()), **layers}
        scales = _scales(context.model) if self.batch_norm else {}
        radii = by_layer(context, self.radius, self.growth, self.groups)
        balls, clips, free = [], [], []
        for name, p in context.model.named_parameters():
            radius = self.head_radius if context.in_head(name) else radii.get(name)
            if radius is None or not p.requires_grad:
                free.append(name)
            elif name in matrices:
                balls.append(self._ball(context, name, matrices[name], radius, plain))
            elif name in scales:
                clips.append(self._clip(context, scales[name], radius, plain))
            else:
                free.append(name)
        if not (balls or clips):
            raise InputError(f"no trainable layer of {type(context.model).__name__} is constrained; give a radius for "
                             "at least one of its weight tensors")
        return Projection(tuple(balls), tuple(clips), tuple(free))

    def _ball(self, context: Context, name: str, module: nn.Module | None, radius: float,
              plain: Mapping[str, Tensor]) -> Ball:
        start, about = context.start[name], self.head_about if context.in_head(name) else "start"
        center = torch.zeros_like(start) if about == "zero" else start
        outputs = output_dimension(module) if module is not None and self.norm in ROW_PROJECTIONS else 0
        if self.relative_to == "start":
            radius = radius * NORMS[self.norm](start, outputs)
        elif self.relative_to == "plain":
            radius = radius * NORMS[self.norm](plain[name] - center, outputs).max()
        return Ball(name, center, _number(radius), about, self.norm, outputs)

    def _clip(self, context: Context, path: str, radius: float, plain: Mapping[str, Tensor]) -> Clip:
        eps = context.model.get_submodule(path).eps
        center = _scale(context.start, path, eps)
        if self.relative_to == "start":
            radius = radius * center.abs().max()
        elif self.relative_to == "plain":
            radius = radius * (_scale(plain, path, eps) - center).abs().max()
        return Clip(path, center, _number(radius))

    def _plain(self, context: Context) -> Mapping[str, Tensor]:
        """Parameters and buffers after plain fine-tuning, or nothing when they are not needed."""
        if self.relative_to != "plain":
            return {}
        if context.reference is None:
            raise InputError("radii relative to plain fine-tuning came outside of fine_tune, where there is none; give "
                             "radius={layer: number, …} instead")
        return {name: tensor.detach().to(context.start[name]) for name, tensor in
                context.reference().state_dict().items()}


@dataclass(frozen=True, eq=False)
class Ball:
    """‖W - center‖ <= radius for one weight tensor, in one of `NORMS`.

    radius: one number, or for row sums one for each row [rows]. outputs: dimension of the weight that counts rows.
    """

    name: str
    center: Tensor
    radius: float | Tensor
    about: str = "start"
    norm: str = "frobenius"
    outputs: int = 0

    def project(self, weight: Tensor) -> None:
        if self.norm == "frobenius":
            project_to_ball(weight, self.center, self.radius)
        else:
            ROW_PROJECTIONS[self.norm](weight, self.center, self.radius, self.outputs)


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
            ball.project(parameters[ball.name])
        for clip in self.clips:
            module = model.get_submodule(clip.module)
            clip_scale(module.weight, _deviation(module.running_var, module.eps), clip.center, clip.radius)

    def report(self) -> list[dict[str, Any]]:
        """One row per tensor: name, rule ("ball", "clip" or "free"), about ("start", "zero" or ""), radius (the
        largest where rows have their own)."""
        return [*({"name": b.name, "rule": "ball", "about": b.about, "radius": float(torch.as_tensor(b.radius).max())}
                  for b in self.balls),
                *({"name": f"{c.module}.weight", "rule": "clip", "about": "start", "radius": c.radius}
                  for c in self.clips),
                *({"name": name, "rule": "free", "about": "", "radius": None} for name in self.free)]


def _matrices(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.ndim >= 2}


def _scales(model: nn.Module) -> dict[str, str]:
    """Parameter name of gamma -> path of its normalisation layer, for those with running statistics."""
    return {f"{path}.weight".removeprefix("."): path for path, module in model.named_modules()
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_var is not None}


def _scale(state: Mapping[str, Tensor], path: str, eps: float) -> Tensor:
    gamma, variance = (state[f"{path}.{name}".removeprefix(".")] for name in ("weight", "running_var"))
    return gamma / _deviation(variance, eps)


def _deviation(variance: Tensor, eps: float) -> Tensor:
    return (variance + eps).sqrt()


def _number(radius: float | Tensor) -> float | Tensor:
    """One number where there is one, so that no step waits for a device to compare it."""
    return radius.item() if isinstance(radius, Tensor) and radius.ndim == 0 else radius
