"""How the eigenvalues of the Hessian, or of the Gauss-Newton matrix, are spread."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.stats
from matplotlib.figure import Figure

from genmeasure.errors import InputError
from genmeasure.plots.style import LINES, WIDTH, colours, figure, styled
from genmeasure.readings import groups, select, tidy

POINT = "density@"
MATRICES = {"hessian-density": "Hessian", "gauss-newton-density": "Gauss-Newton matrix"}
DEPTH = 1e-6
"""Shown is what is above this share of the highest density; below it, the kernel's tail says nothing."""
BELOW = 1e-3
"""Share of the lowest shown density to which what is lower is raised, since zero has no logarithm."""
BANDS = 8
"""Up to this many curves have bands; more would hide each other."""


@styled
def hessian_density(readings: pd.DataFrame, *, measure: str = "hessian-density", layer: str = "total",
                    by: str | None = None) -> Figure:
    """The density of the eigenvalues of every checkpoint on a logarithmic axis, coloured by the label `by`.

    Bands are 95 % t intervals over probes, for up to 8 curves. measure: `hessian-density` or `gauss-newton-density`.
    layer: `total`, or one that was measured by itself. Raises `InputError` where no density was measured.
    """
    frame = tidy(readings)
    rows = select(frame, measure, layers=(layer,))
    rows = rows[rows["term"].str.startswith(POINT) & rows["value"].notna()]
    if rows.empty:
        raise InputError(f"the readings hold no density of the layer {layer!r}; expected the measure {measure!r}; "
                         "add it to the measures")
    rows = rows.assign(eigenvalue=rows["term"].str.removeprefix(POINT).astype(float))
    group = {subject: name.partition("=")[2] or name for name, some in groups(frame, by).items() for subject in some}
    levels = [level for level in dict.fromkeys(group.values()) if level in set(rows["subject"].map(group))]
    colour, line = colours(levels), dict(zip(levels, LINES * len(levels), strict=False))
    curves = [part.sort_values("eigenvalue") for _, part in rows.groupby(["subject", "variant"], sort=False)]
    drawn = figure(WIDTH, 3.0, alt=f"Density of the eigenvalues of the {MATRICES.get(measure, measure)} of "
                                   f"{len(curves)} checkpoints, between {rows['eigenvalue'].min():.3g} and "
                                   f"{rows['eigenvalue'].max():.3g}.")
    panel = drawn.subplots()
    floor, highest = DEPTH * rows["value"].max(), rows["value"].max()
    shown: set[str] = set()
    for part in curves:
        level = group[part["subject"].iloc[0]]
        x, centre = part["eigenvalue"].to_numpy(), part["value"].to_numpy()
        if len(curves) <= BANDS:
            reach = part["stderr"].to_numpy() * scipy.stats.t.ppf(0.975, np.maximum(part["n"].to_numpy() - 1, 1))
            low, high = (np.clip(centre + sign * np.nan_to_num(reach), BELOW * floor, None) for sign in (-1, 1))
            panel.fill_between(x, low, high, color=colour[level], alpha=0.25, lw=0)
            highest = max(highest, high.max())
        panel.plot(x, np.clip(centre, BELOW * floor, None), color=colour[level], ls=line[level],
                   lw=1.4 if len(curves) <= BANDS else 0.7, label=None if level in shown else level)
        shown.add(level)
    panel.set(yscale="log", ylim=(floor, 2 * highest))
    panel.set_xlabel(f"eigenvalue of the {MATRICES.get(measure, measure)} (loss/weight²)")
    panel.set_ylabel("density (weight²/loss)")
    if len(levels) > 1:
        drawn.legend(title=by, loc="outside right upper")
    return drawn
