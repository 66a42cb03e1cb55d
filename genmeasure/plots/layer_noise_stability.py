"""How much noise in each layer alone raises the loss, as a heat map."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from genmeasure.errors import InputError
from genmeasure.plots.style import WIDTH, figure, styled
from genmeasure.tables import layer_noise_stability as table

WIDEST = 4.0
"""Ratios of curve and parabola are told apart up to this factor."""


@styled
def layer_noise_stability(readings: pd.DataFrame, *, by: str | None = None) -> Figure:
    """Layers in execution order against sigma, one row of panels per group of `by`: the noise stability with noise in
    that layer alone, and its ratio to the parabola of the layer's block where that was measured.

    Raises `InputError` where no layer has a noise stability above zero.
    """
    found = table(readings, by=by)
    if not (found["stability"] > 0).any():
        raise InputError("the readings hold no noise stability of single layers above zero; expected the measure "
                         "'noise-stability' with per_layer=True; add it to the measures")
    names, layers = list(dict.fromkeys(found["group"])), list(dict.fromkeys(found["layer"]))
    compared = found["taylor"].notna().any()
    drawn = figure(WIDTH, len(names) * min(6.0, 1.0 + 0.17 * len(layers)),
                   alt=f"Noise stability of {len(layers)} layers with noise in one at a time, {len(names)} groups of "
                       "checkpoints.")
    panels = drawn.subplots(len(names), 1 + compared, squeeze=False, sharey=True, sharex=True)
    scale = LogNorm(*found.loc[found["stability"] > 0, "stability"].quantile([0.02, 1]))
    for row, name in zip(panels, names, strict=True):
        part = found[found["group"] == name]
        grids = {"increase of the loss": (part["stability"].where(part["stability"] > 0), "viridis", scale)}
        if compared:
            grids["over ½ σ² tr H"] = (part["stability"] / part["taylor"], "RdBu_r", LogNorm(1 / WIDEST, WIDEST))
        for panel, (label, (values, colours, norm)) in zip(row, grids.items(), strict=True):
            grid = part.assign(shown=values).pivot_table("shown", "layer", "sigma", dropna=False).reindex(layers)
            _heat(drawn, panel, grid, label, colours, norm)
        row[0].set_title(name.replace("=", " = ") if len(names) > 1 else "", loc="left")
    drawn.supxlabel("standard deviation σ of the weight noise", fontsize=9)
    return drawn


def _heat(drawn: Figure, panel: Axes, grid: pd.DataFrame, label: str, colours: str, norm: LogNorm) -> None:
    image = panel.imshow(np.ma.masked_invalid(grid.to_numpy(dtype=float)), aspect="auto", cmap=colours, norm=norm)
    every = int(np.ceil(len(grid) / 30))
    panel.set_yticks(range(0, len(grid), every), list(grid.index)[::every], fontsize=6)
    panel.set_xticks(range(len(grid.columns)), [f"{sigma:g}" for sigma in grid.columns], rotation=60, fontsize=6)
    panel.spines[:].set_visible(False)
    drawn.colorbar(image, ax=panel, label=label, extend="both" if colours == "RdBu_r" else "min")
