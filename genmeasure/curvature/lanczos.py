"""Lanczos with full re-orthogonalisation, for several vectors at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from genmeasure.curvature.memory import basis_place
from genmeasure.errors import InputError

BREAKDOWN = {torch.float32: 1e-7, torch.float64: 1e-14}
"""A new direction this small relative to the operator is rounding of its products: the space is exhausted."""
BLOCK = 16
"""Vectors for which memory is taken at a time."""


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


class Basis:
    """Orthonormal vectors [b, n, d], n growing up to `most`; memory is taken in blocks, when vectors come."""

    def __init__(self, most: int):
        self._most, self._count = most, 0
        self._blocks: list[Tensor] = []

    def append(self, q: Tensor) -> None:
        """One more vector of each: q [b, d]."""
        row = self._count % BLOCK
        if row == 0:
            self._blocks.append(q.new_empty(len(q), min(BLOCK, self._most - self._count), q.shape[1]))
        self._blocks[-1][:, row] = q
        self._count += 1

    def orthogonalised(self, w: Tensor) -> Tensor:
        """w [b, d] without its parts along the vectors."""
        for i, block in enumerate(self._blocks):
            known = block[:, :self._count - i * BLOCK]
            w = w - torch.bmm(torch.bmm(known, w[:, :, None]).mT, known)[:, 0]
        return w

    def combined(self, coefficients: Tensor) -> Tensor:
        """Combinations [c, d] of the vectors of the first operator, for coefficients [c, n]."""
        known = torch.cat([block[0] for block in self._blocks])[:self._count]
        return coefficients.to(known) @ known


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, steps: int, *,
            place: torch.device | None = None, basis: Basis | None = None) -> Iterator[Tridiagonal]:
    """Tridiagonalise b symmetric operators at once, one step after another.

    product: [b, d] -> [b, d]. start: [b, d], no row zero. place: the device that keeps the basis and does the
    orthogonalisation, by default that of `start`, where the products are made. basis: an empty one to fill. Yields
    after each of at most min(steps, d) products. Vectors keep the dtype of `start`, coefficients are float64 on
    `place`.
    """
    place = place or start.device
    q = (start / start.norm(dim=1, keepdim=True)).to(place)
    limit = min(steps, start.shape[1])
    basis = basis or Basis(limit)
    diagonal, off_diagonal = [], []
    scale = torch.zeros(len(start), dtype=torch.float64, device=place)
    alive = torch.ones(len(start), dtype=torch.bool, device=place)
    for step in range(limit):
        basis.append(q)
        w = product(q.to(start.device)).to(place)
        scale = torch.maximum(scale, w.norm(dim=1).double())
        diagonal.append((w * q).sum(1).double())
        for _ in range(2):  # once is not enough in finite precision
            w = basis.orthogonalised(w)
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
    """Some eigenvalue lies within `residual` of `value`; converged: within `rtol` times the largest modulus."""

    value: float
    residual: float
    converged: bool


@dataclass(frozen=True)
class Ends:
    """Eigenvalues from both ends of a spectrum, the outermost first, and the products that they took."""

    largest: tuple[Eigenvalue, ...]
    smallest: tuple[Eigenvalue, ...]
    products: int

    @property
    def converged(self) -> bool:
        return all(e.converged for e in (*self.largest, *self.smallest))

    @classmethod
    def of(cls, values: Tensor, residuals: Tensor, *, k: int, negative: int, rtol: float, products: int) -> Ends:
        """The k largest and the `negative` smallest of values [m], ascending, with residuals [m]."""
        bound = rtol * values.abs().max().item()
        found = [Eigenvalue(v, r, r <= bound) for v, r in zip(values.tolist(), residuals.tolist(), strict=True)]
        return cls(tuple(found[:-k - 1:-1]), tuple(found[:negative]), products)


def check_wanted(k: int, negative: int, size: int, max_products: int) -> None:
    """Raise `InputError` where no eigenvalue is asked for, or more than `max_products` products can show."""
    if k < 1:
        raise InputError(f"k={k} largest eigenvalues were asked for; give k=1 or more")
    needed = min(k + negative, size)
    if max_products < needed:
        raise InputError(f"k={k} largest and negative={negative} smallest eigenvalues were asked for within "
                         f"max_products={max_products}; each takes a product at the least, take "
                         f"max_products={needed} or more")


def eigenvalues(product: Callable[[Tensor], Tensor], size: int, *, k: int = 1, negative: int = 1, rtol: float,
                max_products: int, like: Tensor, seed: int) -> Ends:
    """The k algebraically largest and the `negative` smallest eigenvalues of a symmetric operator on [size] vectors.

    Stops when all their residuals are at most `rtol` times the largest modulus, or after `max_products`. The start
    vector is Gaussian, drawn from `seed`. A Krylov space of one start vector meets every eigenspace in one direction:
    an eigenvalue counts once, whatever its multiplicity. Where there are fewer distinct ones than asked for, those that
    there are come back, exact up to rounding; both ends may then name the same one.

    The basis takes up to `max_products` vectors of the dtype of `like`, on its device or on the host (`basis_place`).
    Raises `InputError` where it fits nowhere, and where `max_products` is below the number of eigenvalues.
    """
    check_wanted(k, negative, size, max_products)
    place = basis_place(min(max_products, size), size, like, parameter="max_products")
    start = torch.randn(1, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(like)
    for m, t in enumerate(lanczos(lambda q: product(q[0])[None], start, max_products, place=place), 1):
        t = t.cpu()
        values, vectors = t.ritz()
        residuals = t.off_diagonal[0, -1] * vectors[0, -1, :].abs()
        ends = Ends.of(values[0], residuals, k=k, negative=negative, rtol=rtol, products=m)
        if m > max(k, negative) and ends.converged:
            break
    return ends


def extreme_eigenvalues(product: Callable[[Tensor], Tensor], size: int, **given) -> tuple[Eigenvalue, Eigenvalue]:
    """The algebraically smallest and largest eigenvalue; parameters as of `eigenvalues`."""
    ends = eigenvalues(product, size, **given)
    return ends.smallest[0], ends.largest[0]
