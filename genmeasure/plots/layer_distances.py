"""How far each layer travelled from the start."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.stats
from matplotlib.figure import Figure

from genmeasure.errors import InputError
from genmeasure.plots.style import LINES, MARKERS, WIDTH, colours, figure, styled
from genmeasure.readings import groups, tidy
from genmeasure.tables import mean

RELATIVE = r"$\|W - W^{(s)}\|_F\,/\,\|W^{(s)}\|_F$"


@styled
def layer_distances(readings: pd.DataFrame, *, by: str | None = None, term: str = "relative") -> Figure:
    """The distance `term` of every layer in execution order, one line per group of `by`.

    Points are means over checkpoints; bars are 95 % t intervals of the mean, absent for one checkpoint.
    Raises `InputError` where no layer has this distance.
    """
    frame = tidy(readings)
    rows = frame[(frame["measure"] == "distance") & (frame["term"] == term) & frame["value"].notna()
                 & ~frame["layer"].isin(["", "total"])]
    if rows.empty:
        raise InputError(f"the readings hold no {term!r} distance of any layer; expected the measure 'distance'; "
                         "add it to the measures")
    order = list(dict.fromkeys(rows["layer"]))
    members = {name: some for name, some in groups(frame, by).items() if rows["subject"].isin(some).any()}
    levels = [name.partition("=")[2] or name for name in members]
    colour = colours(levels)
    drawn = figure(WIDTH, 3.0, alt=f"{term} distance from the start for {len(order)} layers in execution order, "
                                   f"{len(members)} groups of checkpoints.")
    panel = drawn.subplots()
    spread = 0.3 * min(1, len(members) / 6)
    for i, ((_, some), level) in enumerate(zip(members.items(), levels, strict=True)):
        values = [rows.loc[rows["subject"].isin(some) & (rows["layer"] == layer), "value"] for layer in order]
        centre, stderr = np.array([mean(v, np.full(len(v), np.nan)) for v in values]).T
        reach = [scipy.stats.t.ppf(0.975, len(v) - 1) if len(v) > 1 else np.nan for v in values] * stderr
        at = np.arange(len(order)) + (spread * (2 * i / (len(members) - 1) - 1) / 2 if len(members) > 1 else 0)
        panel.errorbar(at, centre, np.nan_to_num(reach), color=colour[level], marker=MARKERS[i % len(MARKERS)],
                       ls=LINES[i % len(LINES)], lw=1, elinewidth=0.9, label=level)
    every = int(np.ceil(len(order) / 24))
    panel.set_xticks(range(0, len(order), every), order[::every], rotation=45, ha="right", rotation_mode="anchor")
    panel.set_xlabel("layer, in execution order" + (f" (every {every}th named)" if every > 1 else ""))
    panel.set_ylabel(RELATIVE if term == "relative" else f"{term} distance from the start")
    panel.set_ylim(bottom=0)
    if len(members) > 1:
        drawn.legend(title=by, loc="outside right upper")
    return drawn
