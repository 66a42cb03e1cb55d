"""A run folder's readings -> correlations, tables, plots and the report."""

from __future__ import annotations

import json
from pathlib import Path

from genmeasure import correlate as correlation
from genmeasure.errors import InputError
from genmeasure.plots import write_plots
from genmeasure.predictive.power import predictive_power
from genmeasure.readings import read
from genmeasure.report import write_report
from genmeasure.study import to_csv, write_atomically
from genmeasure.tables import all_tables, write_tables

OURS = (".csv", ".md", ".tex", ".png", ".svg")
ENOUGH = 3
"""Subjects that a correlation needs at least."""


def publish(folder: Path) -> Path:
    """Write `correlations.csv` (with several subjects), `predictive_power.csv` (where the study names its axes),
    `tables/`, `plots/` and `report.html` from `readings.csv`.

    `by`, `cluster`, `axes` and `given` are taken from `provenance.json`: the label column that groups tables and plots,
    those whose values mark checkpoints that are resampled together, those that are hyper-parameters, and the one that a
    partial correlation holds fixed. Returns the path of the report.
    """
    if not (folder / "readings.csv").is_file():
        raise InputError(f"{str(folder)!r} holds no readings.csv; give the folder of a run, or make one with "
                         "`genmeasure audit`, `run` or `demo`")
    readings = read(folder / "readings.csv")
    facts = _facts(folder / "provenance.json")
    by, cluster = facts.get("by"), facts.get("cluster")
    correlations = power = None
    gaps = readings[(readings["measure"] == "gap") & (readings["term"] == "loss-gap")]
    if gaps["subject"].nunique() >= ENOUGH:
        correlations = correlation.correlate(readings, cluster=cluster, by=by)
        write_atomically(folder / "correlations.csv", to_csv(correlations))
    else:
        (folder / "correlations.csv").unlink(missing_ok=True)
    if correlations is not None and facts.get("axes"):
        sizes = {s.get("test examples") for s in facts.get("subjects", {}).values()}
        power = predictive_power(readings, axes=facts["axes"], cluster=cluster, given=facts.get("given"),
                                 test_examples=sizes.pop() if len(sizes) == 1 else None)
        write_atomically(folder / "predictive_power.csv", to_csv(power))
    else:
        (folder / "predictive_power.csv").unlink(missing_ok=True)
    outputs = {s["outputs"] for s in facts.get("subjects", {}).values()}
    classes = outputs.pop() if len(outputs) == 1 else None
    written = write_tables(all_tables(readings, correlations, by=by, classes=classes, power=power), folder / "tables")
    written += write_plots(readings, folder / "plots", by=by, classes=classes, cluster=cluster)
    for left in ((folder / "tables").iterdir(), (folder / "plots").iterdir()):
        for path in left:  # of other measures that an earlier run took
            if path not in written and path.suffix in OURS:
                path.unlink()
    return write_report(folder)


def _facts(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"{str(path)!r} is no JSON ({error}); delete it, or run the study again") from error
