"""Lanczos with full re-orthogonalisation, for several vectors at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BREAKDOWN = {torch.float32: 1e-7, torch.float64: 1e-14}
"""A new direction this small relative to the operator is rounding of its products: the space is exhausted."""


@dataclass(frozen=True)
class Tridiagonal:
    """The operator in the Krylov basis so far.

    diagonal [b, m], off_diagonal [b, m] (its last entry couples to the next, unseen direction), exhausted [b]: the
    basis spans an invariant subspace, so that what is read off is exact up to rounding of the products.
    """

    diagonal: Tensor
    off_diagonal: Tensor
    exhausted: Tensor

    def cpu(self) -> Tridiagonal:
        """On the CPU, where small eigenproblems are solved faster and least squares may lack rank."""
        return Tridiagonal(self.diagonal.cpu(), self.off_diagonal.cpu(), self.exhausted.cpu())

    def matrix(self) -> Tensor:
        """[b, m, m]."""
        inner = self.off_diagonal[:, :-1]
        return torch.diag_embed(self.diagonal) + torch.diag_embed(inner, 1) + torch.diag_embed(inner, -1)

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues [b, m], ascending, and eigenvectors [b, m, m]."""
        return torch.linalg.eigh(self.matrix())


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Iterator[Tridiagonal]:
    """Tridiagonalise b symmetric operators at once, one step after another.

    product: [b, d] -> [b, d]. start: [b, d], no row zero. Yields after each of at most min(steps, d) products.
    Vectors keep the dtype of `start`, coefficients are float64.
    """
    q = start / start.norm(dim=1, keepdim=True)
    limit = min(steps, start.shape[1])
    basis = torch.zeros(len(q), limit, q.shape[1], dtype=q.dtype, device=q.device)
    diagonal, off_diagonal = [], []
    scale = torch.zeros(len(start), dtype=torch.float64, device=start.device)
    alive = torch.ones(len(start), dtype=torch.bool, device=start.device)
    for step in range(limit):
        basis[:, step] = q
        w = product(q)
        scale = torch.maximum(scale, w.norm(dim=1).double())
        diagonal.append((w * q).sum(1).double())
        known = basis[:, :step + 1]
        for _ in range(2):  # once is not enough in finite precision
            w = w - torch.bmm(torch.bmm(known, w[:, :, None]).mT, known)[:, 0]
        beta = w.norm(dim=1).double()
        alive = alive & (beta > BREAKDOWN[start.dtype] * scale) & (step + 1 < start.shape[1])
        beta = torch.where(alive, beta, 0.0)
        off_diagonal.append(beta)
        yield Tridiagonal(torch.stack(diagonal, 1), torch.stack(off_diagonal, 1), ~alive)
        if not alive.any():
            return
        q = torch.where(alive[:, None], w / beta.clamp(min=torch.finfo(torch.float32).tiny)[:, None].to(w), 0.0)


@dataclass(frozen=True)
class Eigenvalue:
    """An extreme eigenvalue: some eigenvalue lies within `residual` of `value`."""

    value: float
    residual: float
    converged: bool
    products: int


def extreme_eigenvalues(product: Callable[[Tensor], Tensor], size: int, *, rtol: float, max_products: int,
                        like: Tensor, seed: int) -> tuple[Eigenvalue, Eigenvalue]:
    """The algebraically smallest and largest eigenvalue of a symmetric operator on [size] vectors.

    Stops when both residuals are at most `rtol` times the larger modulus, or after `max_products`. The start vector
    is Gaussian, drawn from `seed`.
    """
    start = torch.randn(1, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(like)
    for m, t in enumerate(lanczos(lambda q: product(q[0])[None], start, max_products), 1):
        values, vectors = t.ritz()
        residuals = (t.off_diagonal[0, -1] * vectors[0, -1, :].abs())[[0, -1]]
        ends = values[0, [0, -1]]
        converged = residuals <= rtol * ends.abs().max()
        if converged.all() and m > 1:
            break
    return tuple(Eigenvalue(ends[i].item(), residuals[i].item(), bool(converged[i]), m) for i in (0, 1))
