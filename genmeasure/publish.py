"""A run folder's readings -> correlations, tables, plots and the report."""

from __future__ import annotations

import json
from pathlib import Path

from genmeasure import correlate as correlation
from genmeasure.errors import InputError
from genmeasure.plots import write_plots
from genmeasure.report import write_report
from genmeasure.report.readings import read
from genmeasure.study import to_csv, write_atomically
from genmeasure.tables import all_tables, write_tables

ENOUGH = 3
"""Subjects that a correlation needs at least."""


def publish(folder: Path) -> Path:
    """Write `correlations.csv` (with several subjects), `tables/`, `plots/` and `report.html` from `readings.csv`.

    `by` and `cluster` are taken from `provenance.json`: the label column that groups tables and plots, and those whose
    values mark checkpoints that are resampled together. Returns the path of the report.
    """
    if not (folder / "readings.csv").is_file():
        raise InputError(f"{str(folder)!r} holds no readings.csv; give the folder of a run, or make one with "
                         "`genmeasure audit`, `run` or `demo`")
    readings = read(folder / "readings.csv")
    facts = json.loads((folder / "provenance.json").read_text()) if (folder / "provenance.json").is_file() else {}
    by, cluster = facts.get("by"), facts.get("cluster")
    correlations = None
    gaps = readings[(readings["measure"] == "gap") & (readings["term"] == "loss-gap")]
    if gaps["subject"].nunique() >= ENOUGH:
        correlations = correlation.correlate(readings, cluster=cluster, by=by)
        write_atomically(folder / "correlations.csv", to_csv(correlations))
    outputs = {s["outputs"] for s in facts.get("subjects", {}).values()}
    classes = outputs.pop() if len(outputs) == 1 else None
    write_tables(all_tables(readings, correlations, by=by, classes=classes), folder / "tables")
    write_plots(readings, folder / "plots", by=by, classes=classes, cluster=cluster)
    return write_report(folder)
