"""Eigenvalues of the Gauss-Newton matrix from the ends of its spectrum."""

from __future__ import annotations

from genmeasure.estimate import Estimate
from genmeasure.measures.hessian_top import UNITS, ends
from genmeasure.registry import measure
from genmeasure.subject import Subject

ROUTES = ("davidson", "lanczos", "eigsh")


@measure("gauss-newton-top", index=("layer", "term"), unit=UNITS, costly=True,
         source="Schraudolph 2002, doi:10.1162/08997660260028683; measures.md 10")
def gauss_newton_top(subject: Subject, *, k: int = 1, negative: int = 0, per_layer: bool = False, rtol: float = 1e-3,
                     max_products: int = 100, route: str = "davidson",
                     seed: int = 0) -> dict[tuple[str, str], Estimate]:
    """The k largest eigenvalues of the Gauss-Newton matrix of the mean training loss over all selected layers.

    G = mean of J' A J, with J the Jacobian of an example's outputs and A the Hessian of its loss in them: the Hessian
    without the curvature of the network, positive semidefinite where the loss is convex in the outputs. For the
    cross-entropy it is the Fisher information of the predicted distribution. Terms, parameters and errors are those of
    `hessian-top`; PyHessian has no route to this matrix.
    """
    return ends(subject, "gauss-newton", ROUTES, k=k, negative=negative, per_layer=per_layer, rtol=rtol,
                max_products=max_products, route=route, seed=seed)
