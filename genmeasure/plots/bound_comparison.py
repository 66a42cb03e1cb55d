"""All bounds of a study on logarithmic axes, those of the 0-1 error apart from those of the loss."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from genmeasure import tables
from genmeasure.errors import InputError
from genmeasure.plots.style import COLOURS, WIDTH, figure, styled
from genmeasure.readings import select, tidy

LOOKS = {"certificate": ("s", COLOURS[2]), "measure": ("o", COLOURS[0]), "reproduction": ("^", COLOURS[1])}
PANELS = {"error": ("bounds of the 0-1 error", {"error-gap": "measured gap", "error-test": "measured test error"}),
          "loss": ("bounds of the loss", {"loss-gap": "measured gap", "loss-test": "measured test loss"})}
"""What is bounded -> the axis's name, and the measured numbers that stand above it."""

Spans = dict[str, tuple[str, pd.Series]]
"""A row's name -> kind and log10 of the values."""


@styled
def bound_comparison(readings: pd.DataFrame) -> Figure:
    """Each bound's median over checkpoints with its range, the smallest on top; the dashed line marks 1.

    A panel each for bounds of the 0-1 error and of the loss, under the measured gap and test value of the same. Powers
    of ten come from the bound's term `log10`, which exists where the value itself overflows. Raises `InputError` where
    there is no bound.
    """
    frame = tidy(readings)
    spans: dict[str, Spans] = {of: {} for of in PANELS}
    for bound, variant, kind, of in tables.bound_comparison(readings)[["bound", "variant", "kind", "of"]].itertuples(
            index=False):
        logs = _logarithms(frame, bound, variant)
        if len(logs):
            spans[of][f"{bound} ({variant})" if variant else bound] = (kind, logs)
    spans = {of: _with_measured(frame, of, found) for of, found in spans.items() if found}
    if not spans:
        raise InputError("the readings hold no finite bound; expected a bound's terms 'total' and 'log10'; "
                         "add a bound to the measures")
    powers = "; ".join(
        f"{PANELS[of][0]}: " + ", ".join(f"{name} {logs.median():.1f}" for name, (_, logs) in rows.items())
        for of, rows in spans.items())
    heights = [len(rows) + 0.2 for rows in spans.values()]
    drawn = figure(WIDTH, 0.5 + 0.6 * len(spans) + 0.26 * sum(heights),
                   alt=f"Median over checkpoints, as a power of ten: {powers}.")
    panels = drawn.subplots(len(spans), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (of, rows) in zip(panels, spans.items(), strict=True):
        _draw(panel, rows)
        panel.set_xlabel(f"{PANELS[of][0]}: median over checkpoints, with range")
    every = pd.concat([logs for rows in spans.values() for _, logs in rows.values()])
    low, high = every.min(), every.max()
    panels[-1].set_xlim(min(low, 0) - 0.04 * (high - low) - 0.2, max(high, 0) + 0.14 * (high - low) + 0.2)
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    panels[-1].xaxis.set_major_formatter(lambda value, _: f"$10^{{{value:.0f}}}$")
    for panel in panels:
        panel.tick_params(axis="x", labelbottom=True)
    kinds = {kind for rows in spans.values() for kind, _ in rows.values()}
    drawn.legend(handles=[Line2D([], [], ls="", marker=LOOKS[k][0], color=LOOKS[k][1], label=k)
                          for k in LOOKS if k in kinds],
                 loc="outside upper right", ncols=3, handletextpad=0.2)
    return drawn


def _with_measured(frame: pd.DataFrame, of: str, spans: Spans) -> Spans:
    """The measured numbers above the bounds, which stand in the order of their medians."""
    result: Spans = {}
    for term, name in PANELS[of][1].items():
        values = select(frame, "gap", term=term)["value"]
        if (values > 0).any():
            result[name] = ("", np.log10(values[values > 0]))
    return result | dict(sorted(spans.items(), key=lambda item: item[1][1].median()))


def _draw(panel: Axes, spans: Spans) -> None:
    for row, (kind, logs) in enumerate(spans.values()):
        marker, colour = LOOKS.get(kind, ("D", "black"))
        panel.plot([logs.min(), logs.max()], [row, row], color=colour, lw=2, alpha=0.5, solid_capstyle="butt")
        panel.plot(logs.median(), row, marker, color=colour, ms=6)
        panel.annotate(_power(logs.median()), (logs.max(), row), (7, 0), textcoords="offset points", va="center",
                       fontsize=8)
    panel.axvline(0, color="0.4", ls="--", lw=0.9, zorder=0)
    panel.set(yticks=range(len(spans)), yticklabels=list(spans), ylim=(len(spans) - 0.4, -0.6))
    panel.tick_params(axis="y", length=0)


def _power(log: float) -> str:
    if -3 < log < 4:
        return f"{10**log:.2g}" if log < 2 else f"{10**log:.0f}"
    exponent = int(np.floor(log))
    return rf"${10 ** (log - exponent):.1f} \times 10^{{{exponent}}}$"


def _logarithms(frame: pd.DataFrame, bound: str, variant: str) -> pd.Series:
    """log10 of the bound for every checkpoint that has one."""
    logs = select(frame, bound, term="log10", variant=variant).set_index("subject")["value"]
    totals = select(frame, bound, term="total", variant=variant).set_index("subject")["value"]
    logs = logs.combine_first(np.log10(totals[(totals > 0) & np.isfinite(totals)]))
    return logs[np.isfinite(logs)]
