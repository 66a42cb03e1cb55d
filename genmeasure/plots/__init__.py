"""Readings to figures, and figures to PNG and SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from genmeasure.plots.bound_comparison import bound_comparison
from genmeasure.plots.hessian_against_noise import hessian_against_noise
from genmeasure.plots.hessian_density import MATRICES, POINT, hessian_density
from genmeasure.plots.layer_distances import layer_distances
from genmeasure.plots.layer_noise_stability import layer_noise_stability
from genmeasure.plots.measure_against_gap import measure_against_gap
from genmeasure.plots.noise_curves import noise_curves
from genmeasure.plots.style import save
from genmeasure.readings import select, tidy, usual_grouping
from genmeasure.tables import layer_noise_stability as layer_tables

__all__ = ["all_plots", "bound_comparison", "hessian_against_noise", "hessian_density", "layer_distances",
           "layer_noise_stability", "measure_against_gap", "noise_curves", "write_plots"]

PREDICTORS = (("ju2022", "total", ""), ("hessian-distance", "vH+v-max", "total"), ("hessian-trace", "", "total"),
              ("distance", "frobenius", "total"))
"""Measure, term and layer shown against the gap, where they were measured."""
DPI = 200


def all_plots(readings: pd.DataFrame, *, by: str | None = None, classes: int | None = None, gap: str = "loss-gap",
              cluster: str | Sequence[str] | None = None) -> Iterator[tuple[str, Figure]]:
    """File name and figure of everything that these readings can show.

    by: label that groups checkpoints; None takes `noise` or else `method` where they vary. classes: see
    `hessian_against_noise`. gap: term of the measure `gap`. cluster: as for `correlate`.
    """
    frame = tidy(readings)
    group = by or usual_grouping(frame)
    stability = select(frame, "noise-stability", term="stability")
    if (stability["value"] > 0).any():
        yield "hessian-against-noise", hessian_against_noise(readings, by=group, classes=classes)
        if len(set(stability["subject"])) > 1:
            yield "noise-curves", noise_curves(readings, by=group)
    if len(drawn := layer_tables(readings, by=group)) and (drawn["stability"] > 0).any():
        yield "layer-noise-stability", layer_noise_stability(readings, by=group)
    gaps = select(frame, "gap", term=gap).set_index("subject")["value"].dropna()
    for measure, term, layer in PREDICTORS:
        rows = select(frame, measure, term=term, layers=(layer,))
        rows = rows[rows["subject"].isin(gaps.index) & rows["value"].abs().between(0, float("inf"), inclusive="left")]
        for variant, part in rows.groupby("variant", sort=False):
            if len(part) >= 3:
                name = "-".join(filter(None, ["gap-against", measure, _file_name(variant)]))
                yield name, measure_against_gap(readings, measure, term=term, layer=layer, variant=variant, gap=gap,
                                                colour=by or "noise", cluster=cluster)
    layers = frame[(frame["measure"] == "distance") & (frame["term"] == "relative")]
    if layers["value"].notna().any():
        yield "layer-distances", layer_distances(readings, by=by or usual_grouping(frame, ("method", "noise")))
    for measure in MATRICES:
        rows = select(frame, measure, layers=("total",))
        if rows.loc[rows["term"].str.startswith(POINT), "value"].notna().any():
            yield measure, hessian_density(readings, measure=measure, by=group)
    if ((frame["term"] == "log10") & frame["value"].notna()).any():
        yield "bounds", bound_comparison(readings)


def write_plots(readings: pd.DataFrame, folder: Path, *, by: str | None = None, classes: int | None = None,
                gap: str = "loss-gap", cluster: str | Sequence[str] | None = None) -> list[Path]:
    """Write every figure of `all_plots` as `NAME.png` and `NAME.svg`; returns the paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, drawn in all_plots(readings, by=by, classes=classes, gap=gap, cluster=cluster):
        for ending in ("png", "svg"):
            written.append(folder / f"{name}.{ending}")
            save(drawn, str(written[-1]), dpi=DPI)
    return written


def _file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text).strip("-")
