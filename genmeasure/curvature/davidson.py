"""Eigenvalues from a sample of the examples, corrected and confirmed on all of them (Davidson 1975)."""

from __future__ import annotations

import torch
from torch import Tensor

from genmeasure.curvature.lanczos import Basis, Ends, check_wanted, eigenvalues, lanczos
from genmeasure.curvature.memory import basis_place
from genmeasure.curvature.products import Operator

EXAMPLES = 512
"""Examples of the sample."""
LOOSE = 10.0
"""The sample's eigenvectors may have residuals larger than asked for by this factor: its own error is larger."""
MOST_WANTED = 3
"""Eigenvalues up to which single corrections take fewer products than Lanczos, which finds all at once."""
ROUNDS = 8
"""Corrections of each eigenvector for which `max_products` must have room."""
PARALLEL = 1e-3
"""A new direction that is this much shorter without its parts along those known is made of rounding."""


def davidson_eigenvalues(operator: Operator, *, k: int, negative: int, rtol: float, max_products: int,
                         seed: int) -> Ends:
    """The k algebraically largest and the `negative` smallest eigenvalues of an operator that is a mean over examples.

    Lanczos finds the eigenvectors on a weighted sample of the examples; the residuals that they leave with all examples
    are directions of correction, until they are at most `rtol` times the largest modulus. Residuals are those with all
    examples; what the sample knows nothing of at all could be missed. Products with the sample are not counted among
    the products that come back, but in the passes. By Lanczos with all examples where the sample would save little,
    where more than `MOST_WANTED` eigenvalues are asked for or `max_products` leaves little room.
    """
    check_wanted(k, negative, operator.size, max_products)
    given = {"k": k, "negative": negative, "rtol": rtol, "max_products": max_products, "seed": seed}
    wanted = k + negative
    few = operator.sampled(EXAMPLES, seed) if wanted <= MOST_WANTED and max_products >= ROUNDS * wanted else None
    if few is None:
        return eigenvalues(operator, operator.size, like=operator.like, **given)
    place = basis_place(2 * min(max_products, operator.size), operator.size, operator.like, parameter="max_products")
    new = _eigenvectors(few, place, k=k, negative=negative, rtol=LOOSE * rtol, steps=max_products, seed=seed)
    vectors = images = new[:0]
    while True:
        new = _orthonormal(new, vectors)[:max_products - len(vectors)]
        if len(new):
            vectors = torch.cat([vectors, new])
            images = torch.cat([images, operator(new.to(operator.like)).to(place)])
        values, mixed = torch.linalg.eigh(_symmetric((vectors @ images.T).double().cpu()))
        mixed = mixed.T.to(vectors)  # [m, m], a row for each eigenvalue
        left = mixed @ images - values.to(vectors)[:, None] * (mixed @ vectors)
        ends = Ends.of(values, left.norm(dim=1).double().cpu(), k=k, negative=negative, rtol=rtol,
                       products=len(vectors))
        if not len(new) or len(vectors) >= max_products or (len(vectors) >= wanted and ends.converged):
            return ends
        open_ = torch.tensor([e.residual > 0 and not e.converged for e in (*ends.smallest, *ends.largest)])
        rows = torch.cat([torch.arange(len(ends.smallest)), len(values) - 1 - torch.arange(len(ends.largest))])
        new = left[rows[open_].unique()]


def _eigenvectors(operator: Operator, place: torch.device, *, k: int, negative: int, rtol: float, steps: int,
                  seed: int) -> Tensor:
    """Eigenvectors [k + negative, size] of both ends by Lanczos, or all [m, size] where the space ends before."""
    start = torch.randn(1, operator.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    basis = Basis(min(steps, operator.size))
    for m, t in enumerate(lanczos(lambda q: operator(q[0])[None], start.to(operator.like), steps, place=place,
                                  basis=basis), 1):
        t = t.cpu()
        values, directions = t.ritz()
        residuals = t.off_diagonal[0, -1] * directions[0, -1, :].abs()
        ends = Ends.of(values[0], residuals, k=k, negative=negative, rtol=rtol, products=m)
        if m >= k + negative and ends.converged:
            break
    rows = torch.cat([torch.arange(min(negative, m)), torch.arange(max(0, m - k), m)]).unique()
    return basis.combined(directions[0].T[rows].to(place))


def _orthonormal(new: Tensor, known: Tensor) -> Tensor:
    """Orthonormal vectors that span what `new` [c, d] adds to the orthonormal `known` [m, d]."""
    found = known
    for x in new:
        length = x.norm()
        for _ in range(2):
            x = x - (found @ x) @ found
        if x.norm() > PARALLEL * length:
            found = torch.cat([found, (x / x.norm())[None]])
    return found[len(known):]


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2
