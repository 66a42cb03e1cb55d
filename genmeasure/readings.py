"""The one long table of readings, made safe to select from."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable
from pathlib import Path

import pandas as pd

from genmeasure.errors import InputError, unknown

COLUMNS = ("study", "subject", "measure", "kind", "layer", "sigma", "term", "value", "stderr", "n", "unit", "params",
           "seconds", "passes", "error")
NUMBERS = ("sigma", "value", "stderr", "n", "seconds", "passes")
NEEDED = ("subject", "measure", "value")
CHECKPOINT_WIDE = ("", "total")
"""Values of `layer` that speak of the whole network."""


def read(path: Path) -> pd.DataFrame:
    """`readings.csv` as a frame. Only an empty cell is missing, so that a label may be called None or NA."""
    if not Path(path).is_file():
        raise InputError(f"there is no file {path}; expected the readings of a finished run; run the study first")
    missing = {column: ["", "nan", "NaN"] for column in NUMBERS}
    columns = pd.read_csv(path, nrows=0).columns
    return pd.read_csv(path, keep_default_na=False, na_values={c: missing.get(c, [""]) for c in columns},
                       low_memory=False)


def label_columns(readings: pd.DataFrame) -> list[str]:
    """The study's own columns: all that are not in `COLUMNS`."""
    return [c for c in readings.columns if c not in COLUMNS and c != "variant"]


def tidy(readings: pd.DataFrame) -> pd.DataFrame:
    """A copy of the readings with every column of `COLUMNS`, text never missing, numbers as float64, labels as text.

    The new column `variant` holds the parameter `variant` and, where one subject has several readings of the same
    quantity, the parameters that tell them apart. Subjects of several studies are named `study: subject`.
    Raises `InputError` for a lacking column, text where a number belongs, or readings that nothing tells apart.
    """
    lacking = [c for c in NEEDED if c not in readings.columns]
    if lacking:
        raise InputError(f"the readings lack the column {lacking[0]!r}; expected a frame with the columns "
                         f"{', '.join(COLUMNS)}; pass the frame read from readings.csv")
    labels = label_columns(readings)
    frame = readings.reindex(columns=[*COLUMNS, *labels]).reset_index(drop=True)
    for column in NUMBERS:
        try:
            frame[column] = pd.to_numeric(frame[column]).astype(float)
        except (ValueError, TypeError) as problem:
            raise InputError(f"the column {column!r} of the readings holds text ({problem}); expected numbers or "
                             "empty cells; write failures to the column 'error'") from None
    for column in COLUMNS:
        if column not in NUMBERS:
            frame[column] = frame[column].astype(object).where(frame[column].notna(), "").map(str)
    for column in labels:
        frame[column] = frame[column].map(label_text).astype(object)
    if len(frame["study"].unique()) > 1:
        frame["subject"] = frame["study"] + ": " + frame["subject"]
    frame["variant"] = _variants(frame)
    return frame


def label_text(value: Hashable) -> str:
    """A label as shown: 0.4 for the float .4, empty where missing."""
    if value is None or value != value:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _variants(frame: pd.DataFrame) -> pd.Series:
    parsed = {text: _parse(text) for text in frame["params"].unique()}
    params = frame["params"].map(parsed)
    variant = params.map(lambda p: str(p.get("variant", ""))).astype(object)
    good = frame["error"] == ""
    key = ["subject", "measure", "layer", "sigma", "term"]
    twice = good & pd.concat([frame[key], variant.rename("variant")], axis=1)[good].duplicated(keep=False).reindex(
        frame.index, fill_value=False)
    for _, rows in frame[twice].groupby(["measure", variant[twice]]):
        requests = [parsed[text] for text in rows["params"].unique()]
        names = sorted({name for request in requests for name in request} - {"variant"})
        telling = [name for name in names if len({json.dumps(r.get(name)) for r in requests}) > 1]
        for position in rows.index:
            given = [f"{name}={label_text(params[position].get(name))}" for name in telling]
            variant[position] = ", ".join(filter(None, [variant[position], *given]))
    whole = pd.concat([frame[key], variant.rename("variant")], axis=1)[good]
    if whole.duplicated().any():
        row = whole[whole.duplicated()].iloc[0]
        raise InputError(f"two readings of {row['measure']!r} of the subject {row['subject']!r} have the same layer, "
                         "sigma, term and parameters; expected one; give the subjects different names or drop the copy")
    return variant


def _parse(text: str) -> dict:
    if not text:
        return {}
    try:
        params = json.loads(text)
    except json.JSONDecodeError:
        params = None
    if not isinstance(params, dict):
        raise InputError(f"the column 'params' holds {text!r}; expected a JSON object of the member's parameters; "
                         "leave the cell empty where there are none")
    return {name: value for name, value in params.items() if name != "found"}


def select(frame: pd.DataFrame, measure: str, *, term: str | None = None, layers: Iterable[str] = CHECKPOINT_WIDE,
           variant: str | None = None) -> pd.DataFrame:
    """Rows of a tidy frame that hold a value of `measure`; `term` and `variant` None keep all of them."""
    keep = (frame["measure"] == measure) & (frame["error"] == "") & frame["layer"].isin(layers)
    if term is not None:
        keep &= frame["term"] == term
    if variant is not None:
        keep &= frame["variant"] == variant
    return frame[keep]


def subjects(frame: pd.DataFrame) -> pd.DataFrame:
    """Labels of every subject of a tidy frame, indexed by subject in order of appearance."""
    return frame.drop_duplicates("subject").set_index("subject")[label_columns(frame)]


def check_labels(frame: pd.DataFrame, names: Iterable[str]) -> None:
    """Raise `InputError` for a name that is no label column."""
    for name in names:
        if name not in label_columns(frame):
            raise unknown("label column", name, label_columns(frame) or ["(the readings have no labels)"])


def groups(frame: pd.DataFrame, by: str | None) -> dict[str, list[str]]:
    """Subjects by group, `name=value` for each value of the label `by`, or all as `all`."""
    table = subjects(frame)
    if by is None:
        return {"all": list(table.index)}
    check_labels(frame, [by])
    return {f"{by}={value}": list(table.index[table[by] == value]) for value in levels(table[by])}


def levels(label: pd.Series) -> list[str]:
    """The values of a label: numbers in order, others in order of appearance."""
    found = list(dict.fromkeys(label))
    try:
        return sorted(found, key=float)
    except ValueError:
        return found


def usual_grouping(frame: pd.DataFrame, preferred: Iterable[str] = ("noise", "method")) -> str | None:
    """The first preferred label that takes two to eight values, if any."""
    table = subjects(frame)
    return next((c for c in preferred if c in table and 2 <= table[c].nunique() <= 8), None)
