"""All bounds of a study on one logarithmic axis."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from genmeasure import tables
from genmeasure.errors import InputError
from genmeasure.plots.style import COLOURS, WIDTH, figure, styled
from genmeasure.readings import select, tidy

LOOKS = {"certificate": ("s", COLOURS[2]), "measure": ("o", COLOURS[0]), "reproduction": ("^", COLOURS[1])}


@styled
def bound_comparison(readings: pd.DataFrame, *, gap: str = "loss-gap") -> Figure:
    """Each bound's median over checkpoints with its range, the smallest on top; the dashed line marks 1.

    Powers of ten come from the bound's term `log10`, which exists where the value itself overflows. Below the bounds
    stands the measured gap. Raises `InputError` where there is no bound.
    """
    frame = tidy(readings)
    table = tables.bound_comparison(readings)
    spans = {}
    for bound, variant, kind in table[["bound", "variant", "kind"]].itertuples(index=False):
        logs = _logarithms(frame, bound, variant)
        if len(logs):
            spans[f"{bound} ({variant})" if variant else bound] = (kind, logs)
    if not spans:
        raise InputError("the readings hold no finite bound; expected a bound's terms 'total' and 'log10'; "
                         "add a bound to the measures")
    spans = dict(sorted(spans.items(), key=lambda item: item[1][1].median()))
    gaps = select(frame, "gap", term=gap)["value"]
    gaps = np.log10(gaps[gaps > 0])
    if len(gaps):
        spans = {f"measured {gap}": ("", gaps)} | spans
    powers = ", ".join(f"{name} {logs.median():.1f}" for name, (_, logs) in spans.items())
    drawn = figure(WIDTH, 1.1 + 0.26 * len(spans), alt=f"Median over checkpoints, as a power of ten: {powers}.")
    panel = drawn.subplots()
    for row, (kind, logs) in enumerate(spans.values()):
        marker, colour = LOOKS.get(kind, ("D", "black"))
        panel.plot([logs.min(), logs.max()], [row, row], color=colour, lw=2, alpha=0.5, solid_capstyle="butt")
        panel.plot(logs.median(), row, marker, color=colour, ms=6)
        panel.annotate(_power(logs.median()), (logs.max(), row), (7, 0), textcoords="offset points", va="center",
                       fontsize=8)
    low = min(logs.min() for _, logs in spans.values())
    high = max(logs.max() for _, logs in spans.values())
    panel.axvline(0, color="0.4", ls="--", lw=0.9, zorder=0)
    panel.set(yticks=range(len(spans)), yticklabels=list(spans), ylim=(len(spans) - 0.4, -0.6),
              xlim=(min(low, 0) - 0.04 * (high - low) - 0.2, max(high, 0) + 0.14 * (high - low) + 0.2))
    panel.tick_params(axis="y", length=0)
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.xaxis.set_major_formatter(lambda value, _: f"$10^{{{value:.0f}}}$")
    panel.set_xlabel("value (loss units): median over checkpoints, with range")
    shown = [kind for kind in LOOKS if any(kind == k for k, _ in spans.values())]
    drawn.legend(handles=[Line2D([], [], ls="", marker=LOOKS[k][0], color=LOOKS[k][1], label=k) for k in shown],
                 loc="outside upper right", ncols=3, handletextpad=0.2)
    return drawn


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
