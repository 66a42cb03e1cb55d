"""The bound comparison of Ju, Li & Zhang (2022): its rows and numbers, and readings laid out in its order."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from genmeasure.readings import label_columns, select, tidy
from genmeasure.report.numbers import MISSING, number

ROWS = {  # bound and variant -> name and published values (arXiv:2206.02659; ResNet-50, BERT-Base)
    ("pitas2017", "table"): ("Pitas et al. 2017", {"cifar-10": 5.51e10, "cifar-100": 3.13e12}),
    ("arora2018", "table"): ("Arora et al. 2018", {"cifar-10": 1.62e6, "cifar-100": 9.66e7}),
    ("long2020", "table"): ("Long & Sedghi 2020", {"cifar-10": 6.30e13, "cifar-100": 8.32e13}),
    ("gouk2021", "table"): ("Gouk et al. 2021", {"cifar-10": 2.04e69, "cifar-100": 2.72e69}),
    ("li2021", "table"): ("Li & Zhang 2021", {"cifar-10": 1.63e27, "cifar-100": 1.31e29}),
    ("neyshabur2018", "table"): ("Neyshabur et al. 2018", {"cifar-10": 3.13e11, "cifar-100": 1.62e13}),
    ("ju2022", ""): ("Ju et al. 2022", {"cifar-10": 2.26, "cifar-100": 7.23, "mrpc": 3.83, "sst-2": 9.71}),
}
"""Bound and variant of the seven rows, with their published values by data set."""
DATA_LABELS = ("data", "dataset")
"""Labels whose value is compared with the published data sets, whatever its case and hyphens."""
MOST = 6
"""More checkpoints than that share one column with their median."""


def comparison(readings: pd.DataFrame) -> pd.DataFrame:
    """The seven published rows in their order, then every certificate, then the measured gaps; one column a checkpoint.

    A cell is text: the value, from `log10` where it overflows, `(vacuous)` where it says nothing, `not defined: why`
    where the theorem has no expression. More than six checkpoints have one column, `median`, of those with a value.
    Published values stand beside where the label `data` or `dataset` names the data set. Empty without any of the rows.
    """
    frame = tidy(readings)
    frame = frame[frame["error"] == ""]
    keys = list(frame[["measure", "variant", "kind"]].drop_duplicates().itertuples(index=False, name=None))
    asked = [(m, v) for m, v, _ in keys]
    wanted = [(key, name) for key, (name, _) in ROWS.items() if key in asked]
    if not wanted:
        return pd.DataFrame(columns=["bound", "kind"])
    certificates = frame[frame["kind"] == "certificate"][["measure", "variant"]].drop_duplicates()
    wanted += [((m, v), f"{m} ({v})" if v else m) for m, v in certificates.itertuples(index=False, name=None)
               if (m, v) not in ROWS]
    kinds = {(m, v): kind for m, v, kind in keys}
    names = list(dict.fromkeys(frame["subject"]))
    groups = {name: [name] for name in names} if len(names) <= MOST else {"median": names}
    rows = [{"bound": name, "kind": kinds[key], **{g: _cell(frame, *key, some) for g, some in groups.items()}}
            for key, name in wanted]
    for term, name in (("loss-gap", "measured gap of the loss"), ("error-test", "measured test error")):
        found = select(frame, "gap", term=term).set_index("subject")["value"]
        if len(found):
            rows.append({"bound": name, "kind": "", **{g: number(found.reindex(some).median())
                                                       for g, some in groups.items()}})
    table = pd.DataFrame(rows)
    published = [values for _, values in ROWS.values()]
    for data in _known_data(frame, {d for values in published for d in values}):
        shown = {name: values.get(data, np.nan) for name, values in ROWS.values()}
        table[f"published, {data}"] = [number(shown[name]) if name in shown else "" for name in table["bound"]]
    return table


def _known_data(frame: pd.DataFrame, known: set[str]) -> list[str]:
    """Published data sets that a label names."""
    values = {_bare(v) for c in label_columns(frame) if c in DATA_LABELS for v in frame[c]}
    return sorted(d for d in known if _bare(d) in values)


def _bare(text: str) -> str:
    return "".join(letter for letter in str(text).lower() if letter.isalnum())


def _cell(frame: pd.DataFrame, bound: str, variant: str, some: list[str]) -> str:
    rows = frame[(frame["measure"] == bound) & (frame["variant"] == variant) & frame["subject"].isin(some)]
    if (rows["term"] == "not-defined").any():
        return "not defined: " + reasons(rows)
    total, log = (rows.loc[rows["term"] == term, "value"].median() for term in ("total", "log10"))
    if np.isnan(total):
        return MISSING
    shown = number(total) if np.isfinite(total) or np.isnan(log) else f"10^{log:.1f}"
    return shown + (" (vacuous)" if (rows.loc[rows["term"] == "vacuous", "value"].median() == 1) else "")


def reasons(rows: pd.DataFrame) -> str:
    """Why a bound is not defined, of tidy rows."""
    found = rows.loc[rows["term"] == "not-defined", "params"]
    return "; ".join(dict.fromkeys(_reason(text) for text in found))


def _reason(params: str) -> str:
    return json.loads(params)["found"]["not defined"]
