"""The noise stability of several checkpoints in one figure."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from genmeasure.errors import InputError
from genmeasure.plots.style import WIDTH, colours, figure, styled
from genmeasure.readings import groups, select, tidy
from genmeasure.tables import Z

NAMED = 8
"""Checkpoints that are told apart where no label groups them."""


@styled
def noise_curves(readings: pd.DataFrame, *, by: str | None = None) -> Figure:
    """Every checkpoint's curve with its 95 % band and, dashed, its parabola sigma²/2 tr H; colours by the label `by`.

    Raises `InputError` where there is no noise stability above zero.
    """
    frame = tidy(readings)
    curves = select(frame, "noise-stability", term="stability").drop_duplicates(["subject", "sigma"])
    if not (curves["value"] > 0).any():
        raise InputError("the readings hold no noise stability above zero; expected the measure 'noise-stability' at "
                         "several sigmas; add it to the measures")
    parabolas = select(frame, "hessian-approximation", term="taylor").drop_duplicates(["subject", "sigma"])
    names = list(dict.fromkeys(curves["subject"]))
    if by is not None:
        level = {subject: group.partition("=")[2] for group, members in groups(frame, by).items()
                 for subject in members}
    else:
        level = {name: name if len(names) <= NAMED else "" for name in names}
    levels = list(dict.fromkeys(level[name] for name in names))
    colour = colours(levels)
    drawn = figure(WIDTH, 3.4, alt=f"Noise stability against sigma for {len(names)} checkpoints, with parabolas.")
    panel = drawn.subplots()
    panel.set(xscale="log", yscale="log", xlabel="standard deviation σ of the weight noise (weight units)",
              ylabel="increase of the loss")
    floor = 0.3 * curves.loc[curves["value"] > 0, "value"].min()
    shown: set[str] = set()
    for name in names:
        part = curves[curves["subject"] == name].sort_values("sigma")
        value, reach = part["value"].to_numpy(), Z * part["stderr"].fillna(0).to_numpy()
        style = {"color": colour[level[name]], "lw": 1}
        panel.fill_between(part["sigma"], np.maximum(value - reach, floor), np.maximum(value + reach, floor),
                           color=style["color"], alpha=0.2, lw=0)
        label = level[name] if level[name] not in shown else None
        shown.add(level[name])
        panel.plot(part["sigma"], np.where(value > 0, value, np.nan), "o-", ms=2.5, label=label or None, **style)
        parabola = parabolas[parabolas["subject"] == name].sort_values("sigma")
        panel.plot(parabola["sigma"], parabola["value"].where(parabola["value"] > 0), "--", lw=0.7,
                   color=style["color"], alpha=0.8)
    panel.set_ylim(bottom=floor)
    panel.xaxis.set_minor_formatter(NullFormatter())
    if any(shown):
        drawn.legend(title=by, loc="outside right upper")
    return drawn
