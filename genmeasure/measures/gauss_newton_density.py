"""The density of the Gauss-Newton matrix's eigenvalues."""

from __future__ import annotations

from genmeasure.estimate import Estimate
from genmeasure.measures.hessian_density import PROBES, STEPS, UNITS, densities
from genmeasure.registry import measure
from genmeasure.subject import Subject


@measure("gauss-newton-density", index=("layer", "term"), unit=UNITS, costly=True,
         source="Ubaru, Chen & Saad 2017, doi:10.1137/16M1104974; Schraudolph 2002, doi:10.1162/08997660260028683")
def gauss_newton_density(subject: Subject, *, per_layer: bool = False, probes: int = PROBES, steps: int = STEPS,
                         rtol: float = 0.0, max_probes: int = 100, width: float = 0.0, tolerance: float = 0.1,
                         seed: int = 0) -> dict[tuple[str, str], Estimate]:
    """Density of the eigenvalues of the Gauss-Newton matrix of the mean training loss over all selected layers.

    G = mean of J' A J, with J the Jacobian of an example's outputs and A the Hessian of its loss in them: the Hessian
    without the curvature of the network. For the cross-entropy it is the Fisher information of the predicted
    distribution. Terms, parameters and errors are those of `hessian-density`.
    """
    return densities(subject, "gauss-newton", per_layer=per_layer, probes=probes, steps=steps, rtol=rtol,
                     max_probes=max_probes, width=width, tolerance=tolerance, seed=seed)
