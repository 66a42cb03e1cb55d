"""Mixed precision: passes through the network in fewer bits, weights and gradients as they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""By name, what `torch.autocast` computes in; None for the weights' own type."""


class Overflow(ArithmeticError):
    """A gradient left the range of float16; the step is to be skipped."""


class Precision:
    """`torch.autocast` around forward passes and, for float16, a scale on the loss before each backward pass.

    scaler: a `torch.amp.GradScaler` for float16, or None. Gradients leave unscaled, so that whatever looks at their
    length (the perturbation of SAM, clipping) sees the right one.
    """

    def __init__(self, name: str = "float32", device: torch.device | str = "cpu"):
        self.device_type = torch.device(device).type
        self.dtype = PRECISIONS[name]
        self.scaler = torch.amp.GradScaler(self.device_type) if name == "float16" else None
        self._scaled = False  # in the present step; a gradient may also come from differences, without a backward pass

    def autocast(self) -> contextlib.AbstractContextManager:
        """Around one forward pass: weights may be moved between passes, and the casts of earlier ones are dropped."""
        return contextlib.nullcontext() if self.dtype is None else torch.autocast(self.device_type, self.dtype)

    def scale(self, loss: Tensor) -> Tensor:
        """What to call backward() on."""
        if self.scaler is None:
            return loss
        self._scaled = True
        return self.scaler.scale(loss)

    @torch.no_grad()
    def unscale(self, gradients: Iterable[Tensor]) -> None:
        """In place; raises `Overflow` where one is not finite."""
        if self.scaler is None:
            return
        gradients = list(gradients)
        torch._foreach_mul_(gradients, 1 / self.scaler.get_scale())
        if gradients and not torch.stack([g.isfinite().all() for g in gradients]).all():
            raise Overflow("a gradient left the range of float16")

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """The optimizer's step on unscaled gradients; False where they overflowed: then nothing moves, and the scale
        is halved."""
        if not self._scaled:
            optimizer.step()
            return True
        self._scaled = False
        scale = self.scaler.get_scale()
        # a power of two, so that nothing is lost when the scaler divides by it again to look for overflow
        torch._foreach_mul_([p.grad for p in _parameters(optimizer) if p.grad is not None], scale)
        self.scaler.step(optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= scale

    def state(self) -> dict[str, float]:
        return {} if self.scaler is None else self.scaler.state_dict()

    def load(self, state: dict[str, float]) -> None:
        if self.scaler is not None:
            self.scaler.load_state_dict(state)


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]
