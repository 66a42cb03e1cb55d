"""Does a measure predict the generalization gap: one point per checkpoint, a line, and how sure the line is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from genmeasure.correlate import Resample, clusters, percentile_interval, relate
from genmeasure.errors import InputError
from genmeasure.plots.style import COLOURS, MARKERS, colours, figure, styled
from genmeasure.readings import levels, select, subjects, tidy
from genmeasure.tables import quantity

WIDE_RANGE = 20.0
"""A positive measure that spans more than this factor is shown on a logarithmic axis."""
GAPS = {"loss-gap": "gap: test − training loss", "error-gap": "gap: test − training error"}


@styled
def measure_against_gap(readings: pd.DataFrame, measure: str, *, term: str = "", variant: str = "", layer: str = "",
                        sigma: float | None = None, gap: str = "loss-gap", colour: str | None = "noise",
                        marker: str | None = "method", cluster: str | Sequence[str] | None = None,
                        resamples: int = 1000, seed: int = 0) -> Figure:
    """The quantity (measure, term, variant, layer, sigma) of every checkpoint against its gap.

    The line is the least-squares fit on the axis as shown, its band the 95 % bootstrap interval over checkpoints.
    cluster: as for `correlate`. colour, marker: label columns; None, a label that is absent or one with more than ten
    values is not shown.
    Raises `InputError` where fewer than 3 checkpoints have both.
    """
    frame = tidy(readings)
    table = subjects(frame)
    rows = select(frame, measure, term=term, layers=(layer,), variant=variant)
    rows = rows[rows["sigma"].isna()] if sigma is None else rows[rows["sigma"] == sigma]
    gaps = select(frame, "gap", term=gap)
    points = pd.DataFrame({"x": rows.set_index("subject")["value"], "gap": gaps.set_index("subject")["value"]})
    points = points.reindex(table.index)
    points = points[np.isfinite(points).all(axis=1)]
    name = quantity(measure, variant, layer, np.nan if sigma is None else sigma, term)
    if len(points) < 3:
        raise InputError(f"{len(points)} checkpoints have both {name} and {gap}; expected at least 3; "
                         "measure more checkpoints")
    x, y = points["x"].to_numpy(), points["gap"].to_numpy()
    logarithmic = bool(x.min() > 0 and x.max() > WIDE_RANGE * x.min())
    resample = Resample(clusters(frame, cluster)[points.index].to_numpy(), resamples, seed)
    found = relate(x, y, resample)
    drawn = figure(4.8, 3.1, alt="")
    panel = drawn.subplots()
    panel.set_xscale("log" if logarithmic else "linear")
    _fit(panel, np.log10(x) if logarithmic else x, y, resample(np.ones(len(x), bool)), logarithmic)
    legend = _points(panel, points, table.loc[points.index], colour, marker)
    if legend:
        box = drawn.legend(handles=legend, loc="outside right upper", handletextpad=0.3)
        for entry, text in zip(legend, box.get_texts(), strict=True):
            text.set_fontweight("bold" if entry.get_marker() in ("None", None, "") else "normal")
    text = _coefficients(found, "pearson-log" if logarithmic and "pearson-log" in found else "pearson")
    panel.set_title(text, loc="left", fontsize=8)
    unit = next((u for u in rows["unit"] if u), "")
    panel.set_xlabel(name.replace(" · total", "") + (f" ({unit})" if unit else ""))
    panel.set_ylabel(GAPS.get(gap, gap))
    drawn.set_label(f"{len(points)} checkpoints, {name} against {gap}: " + text.replace("\n", ", "))
    return drawn


def _fit(panel: Axes, x: np.ndarray, y: np.ndarray, counts: np.ndarray, logarithmic: bool) -> None:
    if np.ptp(x) == 0:
        return
    grid = np.linspace(x.min(), x.max(), 100)
    draws = np.stack([_line(x, y, w, grid) for w in counts])
    shown = 10**grid if logarithmic else grid
    panel.fill_between(shown, *percentile_interval(draws), color="0.85", lw=0, zorder=0)
    panel.plot(shown, _line(x, y, np.ones(len(x)), grid), color="0.35", lw=1, zorder=1)


def _line(x: np.ndarray, y: np.ndarray, weight: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Weighted least squares at `grid`; nan where all weight lies on one x."""
    centre, height = np.average(x, weights=weight), np.average(y, weights=weight)
    spread = (weight * (x - centre) ** 2).sum()
    slope = (weight * (x - centre) * (y - height)).sum() / spread if spread > 0 else np.nan
    return height + slope * (grid - centre)


def _points(panel: Axes, points: pd.DataFrame, labels: pd.DataFrame, colour: str | None,
            marker: str | None) -> list[Line2D]:
    """Draw the points; returns the entries of the legend."""
    def shown(name: str | None) -> list[str]:
        found = levels(labels[name]) if name in labels else []
        return found if 1 < len(found) <= len(MARKERS) else []

    tints, shapes = shown(colour), shown(marker)
    tint, shape = colours(tints), dict(zip(shapes, MARKERS, strict=False))
    for subject, point in points.iterrows():
        panel.plot(point["x"], point["gap"], ls="", mec="white", mew=0.4, ms=5.5,
                   color=tint[labels.loc[subject, colour]] if tints else COLOURS[0],
                   marker=shape[labels.loc[subject, marker]] if shapes else "o")
    entries = []
    for title, keys, look in ((colour, tints, lambda k: {"color": tint[k], "marker": "o"}),
                              (marker, shapes, lambda k: {"color": "0.4", "marker": shape[k]})):
        if keys:
            entries.append(Line2D([], [], ls="", label=title))
            entries += [Line2D([], [], ls="", ms=5, label=key, **look(key)) for key in keys]
    return entries


def _coefficients(found: dict, name: str) -> str:
    def part(symbol: str, key: str) -> str:
        if np.isnan(found.get(key, np.nan)):
            return f"{symbol} undefined"
        return f"{symbol} = {found[key]:.2f} [{found[f'{key}-low']:.2f}, {found[f'{key}-high']:.2f}]".replace("-", "−")
    symbol = "r (log)" if name == "pearson-log" else "r"
    return f"{part(symbol, name)}\n{part('τ', 'kendall')},  N = {found['n']}"
