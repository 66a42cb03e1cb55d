"""What one forward pass tells of every example: in which directions of its outputs the loss curves, and how much.

The output Hessian A of an example is written as a sum of weighted directions u_k, A = sum_k size_k u_k u_k', by its
eigenvectors, or for a softmax cross-entropy with many classes as A = sum_c p_c (e_c - p)(e_c - p)'.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.func import hessian, vmap

from genmeasure.curvature import padding
from genmeasure.curvature.program import find_program
from genmeasure.data.batches import Batch
from genmeasure.risk import FORWARD, Risk

EIGEN_OUTPUTS = 32
"""Up to this many outputs the output Hessian is decomposed; beyond, directions stand for classes."""
MOST_NUMBERS = 2**27
"""Directions and their sizes are kept in memory up to this many numbers."""
ROUNDINGS = 100
"""What a network's outputs are off by, in roundings of their dtype."""
NEGLIGIBLE = 1e-13
"""Sizes this small beside the example's largest are rounding of a direction that has none."""


@dataclass(frozen=True)
class Survey:
    """Directions and their sizes of every example.

    apart: whether directions in output space are told apart. losses [examples]. slopes: norm of the loss's gradient
    with respect to the outputs [examples]. traces: of the output Hessian [examples]. decompose: gives `sizes` and
    `directions`, on first use, since they may be larger than the outputs by as many times as an example has of these.
    """

    apart: bool
    losses: Tensor
    slopes: Tensor
    traces: Tensor
    decompose: Callable[[], tuple[Tensor, Tensor | None]]

    @cached_property
    def _decomposed(self) -> tuple[Tensor, Tensor | None]:
        return self.decompose()

    @property
    def sizes(self) -> Tensor:
        """Eigenvalues of the output Hessian, or weights of classes in it [examples, directions]; its trace
        [examples, 1] where there are too many."""
        return self._decomposed[0]

    @property
    def directions(self) -> Tensor | None:
        """Eigenvectors [examples, directions, outputs] or None."""
        return self._decomposed[1]

    def ends(self, risk: Risk, batch: Batch, outputs: Tensor, examples: Tensor, which: Tensor) -> Tensor:
        """The directions number `which` [D, b] of `examples` [D, b], those of a batch with these outputs: [D, b, k]."""
        if self.directions is not None:
            return self.directions[examples, which].to(outputs)
        return class_directions(risk, outputs, batch.targets.to(outputs.device), which.to(outputs.device))


def output_hessian(risk: Risk, outputs: Tensor, targets: Tensor) -> Tensor:
    """A [batch, k, k] for outputs [batch, ...] of k numbers each; diag(p) - pp' for the cross-entropy."""
    k = outputs[0].numel()
    if risk.loss.softmax_rows is not None and outputs.ndim == 2:
        p = outputs.softmax(1)
        return risk.scale * (torch.diag_embed(p) - p[:, :, None] * p[:, None, :])
    found = vmap(hessian(lambda f, y: risk.scale * risk.loss(f[None], y[None])[0]))(outputs, targets)
    return found.reshape(len(outputs), k, k)


def class_directions(risk: Risk, outputs: Tensor, targets: Tensor, classes: Tensor) -> Tensor:
    """(e_c - p) / |e_c - p| for classes c [D, batch], [D, batch, k]."""
    logits, _ = risk.loss.softmax_rows(outputs, targets)
    p = logits[:, 0].softmax(-1).expand(len(classes), -1, -1)
    direction = torch.zeros_like(p).scatter(2, classes[:, :, None], 1.0) - p
    return direction / direction.norm(dim=2, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)


def negligible(sizes: Tensor, dtype: torch.dtype) -> Tensor:
    """Which of `sizes` (any shape, not negative) may be left out of a sum: the smallest, as many as rounding hides.

    All together they are less than what the rounding of a network's outputs in `dtype` changes in the sum.
    """
    ordered = sizes.flatten().sort().values
    hidden = ordered.cumsum(0) <= ROUNDINGS * torch.finfo(dtype).eps * ordered.sum()
    return sizes < ordered[min(int(hidden.sum()), len(ordered) - 1)]


def active_examples(risk: Risk) -> Tensor | None:
    """Whether an example's loss is not flat in its outputs, up to rounding, [examples]; None where nobody can tell.

    The others add nothing to the gradient, the Hessian or the Gauss-Newton matrix of the mean loss.
    """
    found = survey(risk)
    return None if found is None else ~negligible(found.sizes.abs().sum(1) + found.slopes, risk.dtype)


def survey(risk: Risk) -> Survey | None:
    """One forward pass over the data, taken once for all that need it.

    None where A is too large to decompose and the loss no softmax cross-entropy.
    """
    return risk.shared.remember("survey", lambda: _survey(risk))


@torch.inference_mode(False)
@torch.no_grad()
def _survey(risk: Risk) -> Survey | None:
    one = risk.outputs({}, risk.place(next(iter(risk.batches)).select(slice(1))))
    k, n = one.numel(), risk.batches.size
    eigen = one.ndim == 2 and k <= EIGEN_OUTPUTS and n * k * k <= MOST_NUMBERS
    if not eigen and risk.loss.softmax_rows is None:
        return None
    program = find_program(risk)
    apart = eigen or (one.ndim == 2 and n * k <= MOST_NUMBERS)

    def rows(batch: Batch) -> Tensor:
        batch = risk.place_for_speed(batch)
        risk.spend(FORWARD, len(batch))
        outputs = (padding.outputs(risk, batch) if program is None else program.outputs(batch)).double()
        losses = risk.checked(risk.losses_of(outputs, batch), batch, "loss")[:, None]
        with torch.enable_grad():
            point = outputs.detach().requires_grad_()
            (slope,) = torch.autograd.grad(risk.scale * risk.loss(point, batch.targets).sum(), point)
        slopes = slope.flatten(1).norm(dim=1, keepdim=True)
        if eigen:
            curved = output_hessian(risk, outputs, batch.targets).diagonal(dim1=1, dim2=2).sum(1, keepdim=True)
            return torch.cat([losses, slopes, curved, outputs], 1)
        logits, mask = risk.loss.softmax_rows(outputs, batch.targets)
        p = logits.softmax(-1)
        concentration = p.square().sum(-1, keepdim=True)
        curved = risk.scale * ((1 - concentration[..., 0]) * mask).sum(1, keepdim=True)
        if not apart:
            return torch.cat([losses, slopes, curved], 1)
        sizes = risk.scale * (p * (1 - 2 * p + concentration) * mask[..., None]).flatten(1)
        return torch.cat([losses, slopes, curved, sizes], 1)
    batches = risk.batches
    if program is not None and program.core_each:
        batches = (part for batch in batches for part in batch.split(program.at_once))
    # the Hessian of another loss takes forward mode, of which a process has one for all threads
    core_each = batches is not risk.batches and risk.loss.softmax_rows is not None
    table = risk.engine.examples(rows, batches, core_each=core_each)
    losses, slopes, traces, *rest = table.split([1, 1, 1, k] if apart else [1, 1, 1], 1)
    decompose = partial(_eigen, risk, rest[0]) if eigen else partial(tuple, (rest[0] if apart else traces, None))
    return Survey(apart, losses[:, 0], slopes[:, 0], traces[:, 0], decompose)


@torch.inference_mode(False)
@torch.no_grad()
def _eigen(risk: Risk, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [examples, k] and eigenvectors [examples, k, k] of the output Hessians, from the outputs [.., k]."""
    found = [torch.linalg.eigh(output_hessian(risk, rows, targets.to(rows.device)))
             for rows, targets in zip(outputs.split(risk.batches.lengths), risk.batches.targets, strict=True)]
    return torch.cat([sizes for sizes, _ in found]), torch.cat([v.mT.to(risk.dtype) for _, v in found])
