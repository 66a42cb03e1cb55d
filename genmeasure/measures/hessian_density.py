"""The density of the Hessian's eigenvalues."""

from __future__ import annotations

from genmeasure.curvature.density import DEGREES, spectrum
from genmeasure.curvature.products import Operator
from genmeasure.errors import InputError
from genmeasure.estimate import Estimate
from genmeasure.measures.hessian_top import groups
from genmeasure.registry import measure
from genmeasure.subject import Subject

UNITS = {"density@*": "weight²/loss", "width": "loss/weight²", "moment-1": "loss/weight²", "moment-2": "loss²/weight⁴",
         "moment-3": "loss³/weight⁶", "moment-4": "loss⁴/weight⁸"}
PROBES, STEPS = 5, 20


@measure("hessian-density", index=("layer", "term"), unit=UNITS, costly=True,
         source="Ubaru, Chen & Saad 2017, doi:10.1137/16M1104974; Ghorbani, Krishnan & Xiao 2019, arXiv:1901.10159")
def hessian_density(subject: Subject, *, per_layer: bool = False, probes: int = PROBES, steps: int = STEPS,
                    rtol: float = 0.0, max_probes: int = 100, width: float = 0.0, tolerance: float = 0.1,
                    seed: int = 0) -> dict[tuple[str, str], Estimate]:
    """Density of the eigenvalues of the Hessian of the mean training loss over all selected layers.

    By stochastic Lanczos quadrature: `probes` random sign vectors, `steps` products with full re-orthogonalisation
    each. Every value is a mean over probes with its standard error; n counts probes. rtol > 0: draw on, from 21 probes
    to `max_probes`, until the first two moments have this relative standard error. per_layer: also of every diagonal
    block H_ii, with probes of its own.

    `density@x`: the density at the eigenvalue x, smoothed with a Gaussian of standard deviation `width` (the term; the
    parameter sets it, 0 chooses it from the range of the eigenvalues). Points lie one width apart, so that the sum of
    the densities times the width is one. `moment-p`: tr(H^p) / d, unbiased. `negative-mass`: the fraction of
    eigenvalues below -tolerance * width; the standard error knows the probes, not the bias of few steps.

    Raises `InputError` for fewer than 2 probes or 3 steps, and where `steps` vectors do not fit into memory.
    """
    return densities(subject, "hessian", per_layer=per_layer, probes=probes, steps=steps, rtol=rtol,
                     max_probes=max_probes, width=width, tolerance=tolerance, seed=seed)


def densities(subject: Subject, matrix: str, *, per_layer: bool, width: float, tolerance: float,
              **setting: float) -> dict[tuple[str, str], Estimate]:
    """The terms of `hessian_density` for a curvature matrix; setting: as of `curvature.density.spectrum`."""
    if width < 0 or tolerance < 0:
        raise InputError(f"width={width:g} and tolerance={tolerance:g} came; give numbers that are not negative")
    result: dict[tuple[str, str], Estimate] = {}
    for name, layers in groups(subject, per_layer).items():
        operator = Operator(subject.risk, layers, matrix)
        found = spectrum(operator, operator.size, like=operator.like, purpose=f"{matrix}-density {name}", **setting)
        chosen, points = found.grid(width)
        for x in points:
            result[name, f"density@{x:.9g}"] = found.density(x, chosen)
        result[name, "width"] = Estimate(chosen)
        for degree in DEGREES:
            result[name, f"moment-{degree}"] = found.moment(degree)
        result[name, "negative-mass"] = found.fraction_below(-tolerance * chosen)
    return result
