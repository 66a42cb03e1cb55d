"""What a study found, in sentences computed from its readings."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from genmeasure import tables
from genmeasure.readings import groups, select, subjects, usual_grouping
from genmeasure.report.numbers import interval, number

GAP = "loss-gap"
RANKED = ("ju2022", "total")


def failures(frame: pd.DataFrame) -> list[dict[str, str]]:
    """Subject, measure and error of every failed reading of a tidy frame."""
    rows = frame[frame["error"] != ""].assign(
        measure=lambda f: f["measure"] + f["variant"].map(lambda v: f" ({v})" if v else ""))
    return rows[["subject", "measure", "error"]].drop_duplicates().to_dict("records")


def sentences(frame: pd.DataFrame, correlations: pd.DataFrame | None) -> list[str]:
    """The summary of a tidy frame; a sentence whose readings are missing is left out."""
    found = [_study(frame), *_gap(frame), _fit(frame), *_predictive(frame, correlations), *_parabola(frame),
             *_bounds(frame)]
    return [sentence for sentence in found if sentence]


def _study(frame: pd.DataFrame) -> str:
    table = subjects(frame)
    varied = [f"{len(found)} values of {c}" for c in table if len(found := set(table[c])) > 1]
    failed = len(failures(frame))
    return (f"{_count(len(table), 'checkpoint')}{f' ({_listed(varied)})' if varied else ''}, "
            f"{_count(int((frame['error'] == '').sum()), 'reading')} of "
            f"{_count(frame['measure'].nunique(), 'measure or bound', 'measures and bounds')}, "
            f"{'none failed' if not failed else f'{failed} failed (see above)'}.")


def _gap(frame: pd.DataFrame) -> list[str]:
    rows = select(frame, "gap", term=GAP).set_index("subject")
    rows = rows[np.isfinite(rows["value"])]
    if rows.empty:
        return ["The generalization gap was not measured."]
    if len(rows) == 1:
        parts = {name: select(frame, "gap", term=term)["value"]
                 for name, term in {"training loss": "loss-train", "test loss": "loss-test"}.items()}
        detail = ", ".join(f"{name} {number(values.iloc[0])}" for name, values in parts.items() if len(values))
        gap = number(rows["value"].iloc[0], rows["stderr"].iloc[0])
        return [f"The generalization gap of the loss is {gap}{f' ({detail})' if detail else ''}."]
    text = (f"The generalization gap of the loss is {_spread(rows['value'])} on average over {len(rows)} checkpoints, "
            f"between {number(rows['value'].min())} and {number(rows['value'].max())}")
    by = usual_grouping(frame)
    parts = [f"{_spread(rows['value'].reindex(some).dropna())} at {name.replace('=', ' = ')}"
             for name, some in groups(frame, by).items()] if by else []
    return [f"{text}{': ' + _listed(parts) if parts else ''}."]


def _fit(frame: pd.DataFrame) -> str:
    error, wrong = (select(frame, "gap", term=t).set_index("subject")["value"] for t in ("error-train", "label-noise"))
    count, wrong = len(error), wrong.reindex(error.index).dropna()
    error = error[wrong.index]
    if wrong.empty:
        return ""
    if count == 1:
        return (f"The training error on the given labels is {number(error.iloc[0])}, where a share of "
                f"{number(wrong.iloc[0])} of the labels is wrong.")
    good = int((error <= wrong + 1e-12).sum())
    known = "" if len(error) == count else ", among those whose wrong labels are known,"
    return (f"{good} of {len(error)} checkpoints{known} fit the given training labels at least as well as a model that "
            f"knows every true label would (largest training error {number(error.max())}, where a share of "
            f"{number(wrong[error.idxmax()])} of the labels is wrong).")


def _predictive(frame: pd.DataFrame, correlations: pd.DataFrame | None) -> list[str]:
    if correlations is None or correlations.empty:
        few = len(subjects(frame))
        return ["Correlations with the gap need at least three checkpoints with test data."] if few < 3 else []
    rows = correlations[(correlations["measure"] == RANKED[0]) & (correlations["term"] == RANKED[1])
                        & (correlations["group"] == "all")]
    found = []
    for _, row in rows.iterrows():
        name = RANKED[0] + (f" ({row['variant']})" if row["variant"] else "")
        pearson, kendall = (interval(*(float(row[f"{c}{e}"]) for e in ("", "-low", "-high")))
                            for c in ("pearson", "kendall"))
        verdict = ("larger values go with larger gaps" if row["kendall-low"] > 0 else
                   "larger values go with smaller gaps" if row["kendall-high"] < 0 else
                   "no ranking can be told from chance")
        over = "" if row["clusters"] == row["n"] else f" in {int(row['clusters'])} clusters"
        found.append(f"Over {int(row['n'])} checkpoints {name} correlates with the {row['gap']}: "
                     f"Pearson r = {pearson}, Kendall tau-b = {kendall} (95 % bootstrap intervals over "
                     f"checkpoints{over}): by tau, {verdict}.")
    return found


def _parabola(frame: pd.DataFrame) -> list[str]:
    rows = select(frame, "hessian-approximation")
    names = rows["subject"].unique()
    if not len(names):
        return []
    ends = rows[rows["term"] == "valid-to"].set_index("subject")["value"].dropna()
    none = len(names) - len(ends)
    text = "The parabola σ²/2 · tr H is within 10 % of the measured noise stability "
    if ends.empty:
        return [f"{text}at no sigma of the grid.", _agreement(rows)]
    grid = np.sort(rows["sigma"].dropna().unique())
    end = grid[grid <= ends.median() * (1 + 1e-9)]
    later = grid[grid > ends.median() * (1 + 1e-9)]
    several = " (median over checkpoints)" if len(ends) > 1 else ""
    text += f"up to σ = {end[-1] if len(end) else ends.median():g}{several} "
    text += f"and leaves it from σ = {later[0]:g} on" if len(later) else "and holds to the end of the grid"
    return [text + (f"; {none} of {len(names)} checkpoints have no such range." if none else "."), _agreement(rows)]


def _agreement(rows: pd.DataFrame) -> str:
    at = rows[rows["term"] == "relative-difference"].groupby("sigma")[["value", "stderr"]]
    shares = {sigma: tables.agreement(part) for sigma, part in at}
    if not shares:
        return ""
    smallest = min(shares)
    lost = next((sigma for sigma, share in sorted(shares.items()) if share < 0.5), None)
    if len(set(rows["subject"])) == 1:
        agree, apart = ([f"{sigma:g}" for sigma, share in sorted(shares.items()) if (share == 1) == same]
                        for same in (True, False))
        parts = [f"agree within their 95 % intervals at σ = {_listed(agree)}" if agree else "",
                 f"differ at σ = {_listed(apart)}" if apart else ""]
        return f"Curve and parabola {' and '.join(filter(None, parts))}."
    later = (f"fewer than half of them from σ = {lost:g} on" if lost else
             "at least half of them at every larger σ")
    return (f"Curve and parabola agree within their 95 % intervals for {100 * shares[smallest]:.0f} % of the "
            f"checkpoints at σ = {smallest:g}, and for {later}.")


def _bounds(frame: pd.DataFrame) -> list[str]:
    rows = frame[(frame["term"] == "vacuous") & frame["value"].notna() & (frame["error"] == "")]
    if rows.empty:
        return []
    share = rows.groupby(["measure", "variant"], sort=False)["value"].mean()
    names = {key: key[0] + (f" ({key[1]})" if key[1] else "") for key in share.index}
    empty = [names[key] for key in share.index if share[key] == 1]
    some = [f"{names[key]} ({100 * (1 - share[key]):.0f} % of checkpoints)" for key in share.index if share[key] < 1]
    text = f"Above the trivial bound for every checkpoint (vacuous): {_listed(empty)}." if empty else ""
    below = f"Below it: {_listed(some)}." if some and empty else f"Below the trivial bound: {_listed(some)}."
    return [" ".join(filter(None, [text, below if some else ""]))]


def _spread(values: pd.Series) -> str:
    return number(values.mean(), values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan)


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,}".replace(",", " ") + f" {one if n == 1 else many or one + 's'}"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""
