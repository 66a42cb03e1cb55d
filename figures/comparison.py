"""Means over seeds and differences paired by seed, with 95 % intervals of Student's t."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.95


def interval(values: pd.Series) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval (nan for a single value)."""
    values = values.dropna()
    half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std() / np.sqrt(len(values)) if len(values) > 1 \
        else np.nan
    return values.mean(), values.mean() - half, values.mean() + half


def table(frame: pd.DataFrame, quantities: list[str], reference: str, *, by: str = "noise",
          pair: str = "seed") -> pd.DataFrame:
    """One row per noise and method: every quantity's mean, and its difference from `reference` at the same seed.

    frame: one row per checkpoint with `method`, `noise`, `seed` and the quantities. by, pair: columns that stand for
    noise and seed. Columns `NAME`, `NAME low`,
    `NAME high`, and `NAME - REFERENCE` with the same endings; `seeds`.
    """
    rows = []
    for group, part in frame.groupby(by, sort=True):
        wide = {q: part.pivot_table(index=pair, columns="method", values=q, dropna=False) for q in quantities}
        for method in part["method"].drop_duplicates():
            row = {by: group, "method": method, "seeds": int(wide[quantities[0]][method].count())}
            for q in quantities:
                for name, values in {q: wide[q][method],
                                     f"{q} - {reference}": wide[q][method] - wide[q][reference]}.items():
                    row |= dict(zip((name, f"{name} low", f"{name} high"), interval(values), strict=True))
            rows.append(row)
    return pd.DataFrame(rows)


def checkpoints(readings: pd.DataFrame, quantities: dict[str, dict[str, str]], labels: list[str]) -> pd.DataFrame:
    """One row per checkpoint: its labels and the value of each quantity, named by the columns that pick its reading."""
    result = readings.drop_duplicates("subject").set_index("subject")[labels]
    for name, where in quantities.items():
        rows = readings
        for column, value in where.items():
            rows = rows[rows[column] == value]
        result[name] = rows.drop_duplicates("subject").set_index("subject")["value"]
    return result.reset_index()


def markdown(frame: pd.DataFrame, quantities: dict[str, str], *, by: str = "noise") -> str:
    """The table for a README; `quantities` gives each column's format."""
    lines = [f"| {by} | method | " + " | ".join(quantities) + " |", "|---|---|" + "---:|" * len(quantities)]
    for _, row in frame.iterrows():
        cells = [f"{row[q]:{form}} [{row[f'{q} low']:{form}}, {row[f'{q} high']:{form}}]" for q, form in
                 quantities.items()]
        lines.append(f"| {row[by]} | {row['method']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def forests(panels, table: pd.DataFrame, labels: dict[str, str], colours, markers, *, by: str = "noise",
            name: str = "label noise ") -> None:
    """A panel for each quantity, which `labels` gives its axis label: mean and interval of every method, one row each,
    one colour and marker for each level of noise, or of the column `by`, which goes by `name` in the legend."""
    noises = sorted(table[by].unique())
    methods = list(dict.fromkeys(table["method"]))[::-1]
    for panel, (quantity, label) in zip(panels, labels.items(), strict=True):
        for place, (noise, colour, marker) in enumerate(zip(noises, colours, markers, strict=False)):
            part = table[table[by] == noise].set_index("method").reindex(methods)
            heights = np.arange(len(methods)) + min(0.2, 0.8 / len(noises)) * ((len(noises) - 1) / 2 - place)
            middle, low, high = part[quantity], part[f"{quantity} low"], part[f"{quantity} high"]
            panel.errorbar(middle, heights, xerr=[middle - low, high - middle], fmt=marker, color=colour, ms=4, lw=1,
                           label=f"{name}{noise}")
        panel.set_yticks(range(len(methods)), methods)
        panel.set_xlabel(label)
