"""The measured noise stability beside the parabola of the Hessian trace."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from genmeasure.errors import InputError
from genmeasure.plots.style import COLOURS, WIDTH, figure, panel_label, styled
from genmeasure.tables import PLATEAU, Z, hessian_validity, noise_stability_vs_hessian

MEASURED, LATE = "measured", f"loss > {PLATEAU} log k"
PARABOLA, PUBLISHED, APART = "½ σ² tr H", "σ² tr H (published)", "< 10 % apart"
ORDER = (MEASURED, LATE, PARABOLA, PUBLISHED, APART)


@styled
def hessian_against_noise(readings: pd.DataFrame, *, by: str | None = None, classes: int | None = None) -> Figure:
    """One column per group of `by`. Above, the measured curve with its 95 % band (points), the parabola
    sigma²/2 tr H with its band (line) and the published variant without the 1/2 (dashed), on logarithmic axes. Below,
    the ratio of curve and parabola with its 95 % interval.

    The range of sigma in which the two differ by less than 10 % is shaded; points whose perturbed loss is above
    0.8 log(classes) are hollow. Raises `InputError` where there is no noise stability.
    """
    table = noise_stability_vs_hessian(readings, by=by, classes=classes)
    if not (table["stability"] > 0).any():
        raise InputError("the readings hold no noise stability above zero; expected the measure 'noise-stability' at "
                         "several sigmas; add it to the measures")
    valid = hessian_validity(readings, by=by).set_index("group")
    names = list(table["group"].unique())
    width = max(WIDTH, 1.5 * len(names)) if len(names) > 2 else 3.6 * len(names)
    drawn = figure(width, 3.7, alt=_alt(table, valid))
    panels = drawn.subplots(2, len(names), sharex=True, sharey="row", squeeze=False, height_ratios=[2.2, 1])
    for column, name in enumerate(names):
        part = table[table["group"] == name]
        _shade(panels[:, column], part, valid.loc[name] if name in valid.index else None)
        _curves(panels[0, column], part)
        _ratio(panels[1, column], part)
        if len(names) > 1:
            short = max(map(len, names)) < 14
            panel_label(panels[0, column], name.replace("=", " = ") if short else name.partition("=")[2])
    panels[0, 0].set_ylabel("increase of the loss")
    panels[1, 0].set_ylabel("measured\n/ ½ σ² tr H")
    drawn.align_ylabels()
    drawn.supxlabel("standard deviation σ of the weight noise (weight units)", fontsize=9)
    found = dict(zip(*reversed(panels[0, -1].get_legend_handles_labels()), strict=True))
    for panel in panels[0]:
        found |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    order = sorted(found, key=ORDER.index)
    drawn.legend([found[label] for label in order], order, loc="outside upper left", handlelength=1.8,
                 ncols=5 if len(names) > 2 else 2, columnspacing=1.2, handletextpad=0.5)
    return drawn


def _shade(panels: np.ndarray, table: pd.DataFrame, valid: pd.Series | None) -> None:
    if valid is None or not np.isfinite(valid["valid to"]):
        return
    sigma = table["sigma"].to_numpy()
    half = (sigma[-1] / sigma[0]) ** (0.5 / max(1, len(sigma) - 1))
    for panel in panels:
        panel.axvspan(valid["valid from"] / half, valid["valid to"] * half, color="0.92", lw=0, zorder=0,
                      label=APART)


def _curves(panel: Axes, table: pd.DataFrame) -> None:
    sigma = table["sigma"].to_numpy()
    panel.set(xscale="log", yscale="log")
    both = table[["stability", "taylor"]]
    floor = 0.3 * np.nanmin(both.where(both > 0).to_numpy())
    if table["taylor"].notna().any():
        panel.fill_between(sigma, *_band(table, "taylor", floor), color=COLOURS[1], alpha=0.25, lw=0)
        panel.plot(sigma, table["taylor"], color=COLOURS[1], label=PARABOLA)
        panel.plot(sigma, table["paper"], color=COLOURS[1], ls="--", lw=1, label=PUBLISHED)
    panel.fill_between(sigma, *_band(table, "stability", floor), color=COLOURS[0], alpha=0.25, lw=0)
    stability = table["stability"].where(table["stability"] > 0).to_numpy()
    panel.plot(sigma, stability, color=COLOURS[0], lw=1)
    _points(panel, table, stability)
    panel.xaxis.set_minor_formatter(NullFormatter())


def _ratio(panel: Axes, table: pd.DataFrame) -> None:
    """1 / (1 - d) with d the relative difference; an interval of d goes over into one of the ratio."""
    sigma, centre = table["sigma"].to_numpy(), table["relative difference"].to_numpy()
    reach = Z * table["relative difference stderr"].fillna(0).to_numpy()
    panel.axhline(1, color=COLOURS[1])
    ratio, low, high = (np.where(d < 1, 1 / np.where(d < 1, 1 - d, 1), np.nan)
                        for d in (centre, centre - reach, centre + reach))
    panel.vlines(sigma, low, high, color=COLOURS[0], lw=1)
    panel.plot(sigma, ratio, color=COLOURS[0], lw=1)
    _points(panel, table, ratio)
    panel.set(ylim=(0, 2 if np.nanmax(np.append(ratio, 0)) > 1.45 else 1.5))


def _points(panel: Axes, table: pd.DataFrame, values: np.ndarray) -> None:
    sigma, late = table["sigma"].to_numpy(), table["plateau"].fillna(False).astype(bool).to_numpy()
    panel.plot(sigma[~late], values[~late], "o", color=COLOURS[0], label=MEASURED)
    if late.any():
        panel.plot(sigma[late], values[late], "o", color=COLOURS[0], mfc="white", label=LATE)


def _band(table: pd.DataFrame, name: str, floor: float) -> tuple[pd.Series, pd.Series]:
    """95 % interval; its lower end stays on the axis."""
    reach = Z * table[f"{name} stderr"].fillna(0)
    return (table[name] - reach).clip(lower=floor), (table[name] + reach).clip(lower=floor)


def _alt(table: pd.DataFrame, valid: pd.DataFrame) -> str:
    parts = [f"Noise stability against the standard deviation of the weight noise, from {table['sigma'].min():g} to "
             f"{table['sigma'].max():g}, with the parabola of the Hessian trace."]
    for name, row in valid.iterrows():
        end = "nowhere" if np.isnan(row["valid to"]) else f"from {row['valid from']:g} to {row['valid to']:g}"
        parts.append(f"{name}: less than 10 % apart {end}.")
    return " ".join(parts)
