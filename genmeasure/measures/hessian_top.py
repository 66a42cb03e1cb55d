"""Eigenvalues of the Hessian from the ends of its spectrum."""

from __future__ import annotations

from collections.abc import Sequence

from genmeasure.curvature.davidson import davidson_eigenvalues
from genmeasure.curvature.lanczos import Ends, eigenvalues
from genmeasure.curvature.other_tools import eigsh_eigenvalues, pyhessian_eigenvalues
from genmeasure.curvature.products import Operator
from genmeasure.errors import unknown
from genmeasure.estimate import Estimate
from genmeasure.layers import Layer
from genmeasure.registry import measure
from genmeasure.risk import Risk
from genmeasure.subject import Subject

UNITS = {"*converged": "", "largest*": "loss/weight²", "smallest*": "loss/weight²"}
ROUTES = ("davidson", "lanczos", "eigsh", "pyhessian")


@measure("hessian-top", index=("layer", "term"), source="measures.md 10", unit=UNITS)
def hessian_top(subject: Subject, *, k: int = 1, negative: int = 1, per_layer: bool = False, rtol: float = 1e-3,
                max_products: int = 100, route: str = "davidson", seed: int = 0) -> dict[tuple[str, str], Estimate]:
    """The k algebraically largest and `negative` smallest eigenvalues of the Hessian of the mean training loss.

    Over all selected layers; per_layer: also of every diagonal block H_ii. Terms are `largest`, `largest-2`, … in
    falling and `smallest`, `smallest-2`, … in rising order, each with a `-residual` (some eigenvalue lies this close)
    and `-converged`, 1 where the residual is at most `rtol` times the largest modulus; `converged` is 1 where all are.

    route: `davidson`, by Lanczos on a sample of the examples, whose eigenvectors are corrected until their residuals
    with all examples are small enough, the same as `lanczos` where examples are few or eigenvalues many; `lanczos` on
    all examples, with full re-orthogonalisation, which sees an eigenvalue once whatever its multiplicity and gives
    those that there are where k exceeds the dimension; `eigsh`, ARPACK's restarted Lanczos in float64, which also
    starts from one vector; `pyhessian`, its power iteration, for comparison: no smallest ones, and refused where the
    eigenvalues of largest modulus are not the largest. n counts products with all examples.

    Raises `InputError` for max_products below k + negative, and where the vectors do not fit into memory.
    """
    return ends(subject, "hessian", ROUTES, k=k, negative=negative, per_layer=per_layer, rtol=rtol,
                max_products=max_products, route=route, seed=seed)


def groups(subject: Subject, per_layer: bool) -> dict[str, Sequence[Layer]]:
    """Names of readings and the layers that they are about: `total`, preceded by each layer alone if asked."""
    return {**({x.name: (x,) for x in subject.layers} if per_layer else {}), "total": subject.layers}


def ends(subject: Subject, matrix: str, routes: Sequence[str], *, per_layer: bool, route: str,
         **setting: float) -> dict[tuple[str, str], Estimate]:
    """The terms of `hessian_top` for a curvature matrix, by one of `routes`."""
    if route not in routes:
        raise unknown("route", route, routes)
    result: dict[tuple[str, str], Estimate] = {}
    for name, layers in groups(subject, per_layer).items():
        for term, value in _terms(_found(subject.risk, layers, matrix, route, **setting)).items():
            result[name, term] = value
    return result


def _found(risk: Risk, layers: Sequence[Layer], matrix: str, route: str, *, k: int, negative: int,
           **setting: float) -> Ends:
    if route == "pyhessian":
        return pyhessian_eigenvalues(risk, k, layers=layers, **setting)
    operator = Operator(risk, layers, matrix)
    if route == "davidson":
        return davidson_eigenvalues(operator, k=k, negative=negative, **setting)
    find = eigenvalues if route == "lanczos" else eigsh_eigenvalues
    return find(operator, operator.size, k=k, negative=negative, like=operator.like, **setting)


def _terms(found: Ends) -> dict[str, Estimate]:
    result = {}
    for end, values in (("smallest", found.smallest), ("largest", found.largest)):
        for number, e in enumerate(values, 1):
            name = end if number == 1 else f"{end}-{number}"
            result[name] = Estimate(e.value, 0.0, found.products)
            result[f"{name}-residual"] = Estimate(e.residual, 0.0, found.products)
            result[f"{name}-converged"] = Estimate(float(e.converged), 0.0, found.products)
    result["converged"] = Estimate(float(found.converged), 0.0, found.products)
    return result
