"""Cross-entropy on the worst inputs nearby."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn

from genmeasure.data.batches import Batch, map_tensors
from genmeasure.errors import InputError, unknown
from genmeasure.layers import forward
from genmeasure.losses import cross_entropy
from genmeasure.training.evaluate import kept_modes
from genmeasure.training.pieces import TrainLoss

NORMS = ("inf", "2")


@dataclass(frozen=True)
class AdversarialCrossEntropy(TrainLoss):
    """-ln p[label] at the inputs x + d, ‖d‖ <= radius, that projected gradient ascent finds (Madry et al. 2018,
    arXiv:1706.06083, eq. 2.1 and section 2.1: PGD).

    radius: in units of the inputs; over all floating-point inputs of an example together. norm: "inf", where a step
    goes along the sign of the gradient, or "2", where it goes along the gradient. steps: of the ascent. step_size: by
    default 2.5 * radius / steps. random_start: begin at a point drawn uniformly from the ball, else at x.
    lower, upper: the range that inputs must stay in, None leaves it open.
    The ascent sees the model in evaluation mode, so that examples do not influence each other, dropout is still and
    running statistics stay as they are; no `.grad` is touched. Raises `InputError` for inputs that are not
    floating-point.
    """

    radius: float = 8 / 255
    steps: int = 10
    step_size: float | None = None
    norm: str = "inf"
    random_start: bool = True
    lower: float | None = None
    upper: float | None = None

    def __post_init__(self):
        object.__setattr__(self, "norm", str(self.norm))
        if self.norm not in NORMS:
            raise unknown("norm", self.norm, NORMS)
        if not self.radius >= 0:
            raise InputError(f"radius={self.radius} came; it must be at least 0")
        if self.steps < 0:
            raise InputError(f"steps={self.steps} came; it must be at least 0")
        if self.step_size is not None and not self.step_size > 0:
            raise InputError(f"step_size={self.step_size} came; it must be above 0")

    @property
    def passes(self) -> int:
        return self.steps

    def draw(self, batch: Batch, generator: Generator | None = None, model: nn.Module | None = None) -> Batch:
        """The batch at its worst inputs for `model`."""
        if model is None:
            raise InputError("adversarial training came without a model to find the worst inputs for; call "
                             "draw(batch, generator, model)")
        clean = batch.input_tensors()
        for x in clean:
            if not x.is_floating_point():
                raise InputError(f"adversarial training came across an input of type {x.dtype}; it moves "
                                 "floating-point inputs only, so choose another algorithm for tokens")
        with kept_modes(model), torch.enable_grad():
            model.eval()
            moved = self._ascend(model, batch, clean, generator)
        return _with(batch, clean, moved)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets)

    def _ascend(self, model: nn.Module, batch: Batch, clean: list[Tensor], generator: Generator | None) -> list[Tensor]:
        size = 2.5 * self.radius / max(1, self.steps) if self.step_size is None else self.step_size
        moved = self._allowed(clean, self._start(clean, generator)) if self.random_start else clean
        for _ in range(self.steps):
            at = [x.detach().clone().requires_grad_() for x in moved]
            loss = cross_entropy(forward(model, _with(batch, clean, at)), batch.targets).sum()
            gradients = torch.autograd.grad(loss, at)
            uphill = [g.sign() for g in gradients] if self.norm == "inf" else scaled(gradients, 1.0)
            offsets = [x.detach() + size * u - c for x, u, c in zip(at, uphill, clean, strict=True)]
            moved = self._allowed(clean, self._inside(offsets))
        return moved

    def _start(self, clean: Sequence[Tensor], generator: Generator | None) -> list[Tensor]:
        if self.norm == "inf":
            return [self.radius * (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1).to(x.device)
                    for x in clean]
        directions = [torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device) for x in clean]
        entries = sum(x[0].numel() for x in clean)
        uniform = torch.rand(len(clean[0]), generator=generator, dtype=clean[0].dtype).to(clean[0].device)
        return scaled(directions, self.radius * uniform ** (1 / entries))

    def _inside(self, offsets: list[Tensor]) -> list[Tensor]:
        if self.norm == "inf":
            return [d.clamp(-self.radius, self.radius) for d in offsets]
        return scaled(offsets, lengths(offsets).clamp(max=self.radius))

    def _allowed(self, clean: list[Tensor], offsets: list[Tensor]) -> list[Tensor]:
        moved = [x + d for x, d in zip(clean, offsets, strict=True)]
        return moved if self.lower is None and self.upper is None else [x.clamp(self.lower, self.upper) for x in moved]


def lengths(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm [batch] of each example over all tensors [batch, ...]."""
    return torch.linalg.vector_norm(torch.cat([t.flatten(1) for t in tensors], 1), dim=1)


def scaled(tensors: Sequence[Tensor], length: Tensor | float) -> list[Tensor]:
    """The same directions with another length, one for all or [batch]; zero where they are zero."""
    own = lengths(tensors)
    factor = torch.where(own > 0, length / own, 0.0)
    return [t * factor.reshape(-1, *[1] * (t.dim() - 1)) for t in tensors]


def _with(batch: Batch, clean: Sequence[Tensor], moved: Sequence[Tensor]) -> Batch:
    """The batch with the tensors `moved` in place of its input tensors, which come in the order of `input_tensors`."""
    by_place = {id(x): y for x, y in zip(clean, moved, strict=True)}
    return replace(batch, inputs=map_tensors(batch.inputs, lambda x: by_place[id(x)]))
