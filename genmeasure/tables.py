"""Readings to shown tables, and tables to CSV, Markdown and LaTeX.

A column `x` with companions `x stderr` or `x low` and `x high` is shown as `x ± stderr` or `x [low, high]`; the CSV
keeps all of them in full precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from genmeasure import published
from genmeasure.correlate import redundant
from genmeasure.errors import InputError
from genmeasure.predictive.power import BASELINE
from genmeasure.readings import CHECKPOINT_WIDE, groups, select, subjects, tidy, usual_grouping
from genmeasure.report import markup

VALID = 0.1
"""The quadratic approximation holds where it is off by less than this share of the noise stability."""
Z = 1.96
"""Standard errors on each side of a 95 % interval."""
PLATEAU = 0.8
"""A loss above this share of log(classes) is on its way to that of a random guess."""


def bound_comparison(readings: pd.DataFrame) -> pd.DataFrame:
    """One row per bound and variant.

    Columns: `bound`, `variant`, `kind`, `checkpoints`; `value`, the bound's total (for several checkpoints the median
    with its range `value low`, `value high`, for one its `value stderr`); `of`, what it bounds, the `loss` or the 0-1
    `error`; `log10` of the value (the median; finite also where it overflows); `vacuous`, the share of checkpoints
    whose bound says nothing;
    `violated assumptions`, with the number of checkpoints where not all of them violate it; `not defined`, why the
    theorem has no expression for the network; `failed` checkpoints.
    """
    frame = tidy(readings)
    names = set(frame.loc[frame["term"].isin(["log10", "vacuous", "not-defined"]), "measure"])
    names |= set(frame.loc[frame["kind"].isin(["certificate", "reproduction"]), "measure"])
    rows = []
    for (bound, variant), part in frame[frame["measure"].isin(names)].groupby(["measure", "variant"], sort=False):
        good = part[part["error"] == ""]
        total = good[(good["term"] == "total") & good["value"].notna()]
        values, log = total["value"], good.loc[good["term"] == "log10", "value"]
        several = len(values) > 1
        rows.append({
            "bound": bound, "variant": variant, "kind": part["kind"].iloc[0],
            "of": "loss" if (total["unit"] == "loss").any() else "error", "checkpoints": good["subject"].nunique(),
            "value": values.median(),
            "value stderr": total["stderr"].iloc[0] if len(values) == 1 else np.nan,
            "value low": values.min() if several else np.nan, "value high": values.max() if several else np.nan,
            "log10": log.median() if len(log) else _log10(values).median(),
            "vacuous": good.loc[good["term"] == "vacuous", "value"].mean(),
            "violated assumptions": _violated(good), "not defined": published.reasons(good),
            "failed": part.loc[part["error"] != "", "subject"].nunique()})
    columns = ["bound", "variant", "kind", "of", "checkpoints", "value", "value stderr", "value low", "value high",
               "log10", "vacuous", "violated assumptions", "not defined", "failed"]
    return pd.DataFrame(rows, columns=columns)


def noise_stability_vs_hessian(readings: pd.DataFrame, *, by: str | None = None,
                               classes: int | None = None) -> pd.DataFrame:
    """One row per group and sigma: the measured noise stability beside its Hessian approximation.

    by: a label column; checkpoints of a group are averaged. classes: of the classifier, for the plateau.

    Columns: `group`, `sigma` (weight units), `checkpoints`; `stability`, `taylor` (sigma²/2 tr H) and `paper`
    (sigma² tr H), each with ` stderr`, in units of the loss. For several checkpoints these are means, and standard
    errors come from the spread between checkpoints. `relative difference`, with ` stderr`, is
    (stability - taylor) / stability of each checkpoint; `valid`: it is below 10 % in size; `agree`: the share of
    checkpoints for which its 95 % interval holds zero; `plateau`: the perturbed loss exceeds 0.8 log(classes), empty
    where `classes` is None.
    """
    frame = tidy(readings)
    rows = []
    for group, members in groups(frame, by).items():
        part = frame[frame["subject"].isin(members)]
        curves = {"stability": _curve(part, "noise-stability", "stability"),
                  "taylor": _curve(part, "hessian-approximation", "taylor"),
                  "paper": _curve(part, "hessian-approximation", "paper"),
                  "relative difference": _curve(part, "hessian-approximation", "relative-difference")}
        loss = _curve(part, "noise-stability", "perturbed-loss")
        for sigma in sorted(set(curves["stability"]) | set(curves["taylor"])):
            at = {name: curve.get(sigma, _NOTHING) for name, curve in curves.items()}
            row = {"group": group, "sigma": sigma, "checkpoints": max(len(c) for c in at.values())}
            for name, rows_at in at.items():
                row[name], row[f"{name} stderr"] = mean(rows_at["value"], rows_at["stderr"])
            perturbed = loss.get(sigma, _NOTHING)["value"].mean()
            rows.append(row | {"valid": bool(abs(row["relative difference"]) < VALID),
                               "agree": agreement(at["relative difference"]),
                               "plateau": pd.NA if classes is None else bool(perturbed > PLATEAU * np.log(classes))})
    columns = ["group", "sigma", "checkpoints", "stability", "stability stderr", "taylor", "taylor stderr", "paper",
               "paper stderr", "relative difference", "relative difference stderr", "valid", "agree", "plateau"]
    return pd.DataFrame(rows, columns=columns)


def published_noise_stability(readings: pd.DataFrame, *, by: str | None = None) -> pd.DataFrame:
    """The papers' table: one row per group and sigma, from draws the papers' way (`one_sided`) where there are any.

    Columns: `group`, `sigma`, `draws`; `noise stability` with the ` sd` of one draw (ddof 1), for several checkpoints
    means of both; `Hessian approximation` (sigma²/2 tr H) and `Hessian approximation (paper)` (sigma² tr H); in a
    group's last row `relative RSS` and `relative RSS (paper)` of these columns.
    """
    frame = tidy(readings)
    rows: list[dict] = []
    for group, members in groups(frame, by).items():
        part = frame[frame["subject"].isin(members)]
        drawn = select(part, "noise-stability")
        drawn = drawn[drawn["params"].isin(drawn.loc[drawn["term"] == "sd", "params"])]
        terms = {"Hessian approximation": "taylor", "Hessian approximation (paper)": "paper"}
        parabolas = {name: {sigma: found["value"].mean() for sigma, found in
                            _curve(part, "hessian-approximation", term).items()} for name, term in terms.items()}
        table = [{"group": group, "sigma": sigma, "draws": int(at["n"].max()),
                  "noise stability": at.loc[at["term"] == "stability", "value"].mean(),
                  "noise stability sd": at.loc[at["term"] == "sd", "value"].mean(),
                  **{name: values.get(sigma, np.nan) for name, values in parabolas.items()}}
                 for sigma, at in drawn.groupby("sigma")]
        for name in parabolas if table else ():
            squares = sum((row["noise stability"] - row[name]) ** 2 for row in table)
            table[-1][name.replace("Hessian approximation", "relative RSS")] = (
                squares / sum(row["noise stability"] ** 2 for row in table))
        rows += table
    columns = ["group", "sigma", "draws", "noise stability", "noise stability sd", "Hessian approximation",
               "Hessian approximation (paper)", "relative RSS", "relative RSS (paper)"]
    return pd.DataFrame(rows, columns=columns)


def layer_noise_stability(readings: pd.DataFrame, *, by: str | None = None) -> pd.DataFrame:
    """One row per group, layer and sigma, with noise in that layer alone; means over a group's checkpoints.

    Columns: `group`, `layer`, `sigma`; `stability`, `taylor` (sigma²/2 tr H_ii) and `relative difference`, each with
    ` stderr`.
    """
    frame = tidy(readings)
    names = {"stability": ("noise-stability", "stability"), "taylor": ("hessian-approximation", "taylor"),
             "relative difference": ("hessian-approximation", "relative-difference")}
    layers = [x for x in dict.fromkeys(frame.loc[frame["measure"] == "noise-stability", "layer"])
              if x not in ("", "total")]
    rows = []
    for group, members in groups(frame, by).items():
        part = frame[frame["subject"].isin(members)]
        for layer in layers:
            curves = {name: _curve(part, *where, layers=(layer,)) for name, where in names.items()}
            for sigma in sorted(curves["stability"]):
                row = {"group": group, "layer": layer, "sigma": sigma}
                for name, found in curves.items():
                    at = found.get(sigma, _NOTHING)
                    row[name], row[f"{name} stderr"] = mean(at["value"], at["stderr"])
                rows.append(row)
    columns = ["group", "layer", "sigma", *(f"{name}{end}" for name in names for end in ("", " stderr"))]
    return pd.DataFrame(rows, columns=columns)


def hessian_validity(readings: pd.DataFrame, *, by: str | None = None) -> pd.DataFrame:
    """One row per group: how well and how far the quadratic approximation holds.

    Columns: `group`, `checkpoints`; `relative RSS` and `relative RSS (paper)`, means with ` stderr`, sums over sigma
    of squared differences over sums of squares (no unit); `valid from` and `valid to`, medians of the sigmas between
    which it is off by less than 10 %; `never valid`, checkpoints without such a sigma.
    """
    frame = tidy(readings)
    rows = []
    for group, members in groups(frame, by).items():
        part = select(frame[frame["subject"].isin(members)], "hessian-approximation")
        part = part.drop_duplicates(["subject", "sigma", "term"])  # of several readings the first request's
        if part.empty:
            continue
        row = {"group": group, "checkpoints": part["subject"].nunique()}
        for name, term in {"relative RSS": "relative-rss", "relative RSS (paper)": "relative-rss-paper"}.items():
            row[name], row[f"{name} stderr"] = mean(*(part.loc[part["term"] == term, c] for c in ("value", "stderr")))
        ends = {end: part.loc[part["term"] == f"valid-{end}", "value"] for end in ("from", "to")}
        rows.append(row | {"valid from": ends["from"].median(), "valid to": ends["to"].median(),
                           "never valid": row["checkpoints"] - int(ends["to"].count())})
    columns = ["group", "checkpoints", "relative RSS", "relative RSS stderr", "relative RSS (paper)",
               "relative RSS (paper) stderr", "valid from", "valid to", "never valid"]
    return pd.DataFrame(rows, columns=columns)


def correlation(correlations: pd.DataFrame) -> pd.DataFrame:
    """Correlations with the gap, one row per quantity, the strongest positive Kendall tau first.

    correlations: what `genmeasure.correlate.correlate` returns. Left out here are the single terms of a bound that has
    a total, and the parabolas, which rank checkpoints exactly as the trace does.
    Columns: `quantity`, `kind`, `n`, `Pearson`, `Pearson (log)`, `Spearman`, `Kendall`, each with ` low` and ` high`;
    a further `Kendall, label=value` for each group; `note` (infinite or missing values, ties, constants).
    """
    names = {"pearson": "Pearson", "pearson-log": "Pearson (log)", "spearman": "Spearman", "kendall": "Kendall"}
    ends = {"": "", "-low": " low", "-high": " high"}
    frame = correlations.assign(quantity=[quantity(*key) for key in correlations[_KEY].itertuples(index=False)])
    frame = frame[~redundant(frame)]
    whole = frame[frame["group"] == "all"].set_index("quantity")
    table = whole[["kind", "n"]].copy()
    for name, shown in names.items():
        for end, word in ends.items():
            table[shown + word] = whole[name + end]
    for group in frame.loc[frame["group"] != "all", "group"].unique():
        part = frame[frame["group"] == group].set_index("quantity")
        for end, word in ends.items():
            table[f"Kendall, {group}{word}"] = part[f"kendall{end}"].reindex(table.index)
    table["note"] = [_note(row) for _, row in whole.iterrows()]
    return table.sort_values("Kendall", ascending=False, kind="stable").reset_index()


def predictive(power: pd.DataFrame) -> pd.DataFrame:
    """Predictive power of every quantity over the grid of settings, the largest granulated coefficient first.

    power: what `genmeasure.predictive.power.predictive_power` returns. Columns: `quantity` (baselines by their name),
    `kind`, `n`, `Kendall tau-a`, `granulated`, `psi:AXIS`, `mutual information` and, where known, `sign error, mean`,
    `sign error, largest` and `partial Spearman`, each statistic with ` low` and ` high`.
    """
    names = {"tau-a": "Kendall tau-a", "granulated": "granulated", "mutual-information": "mutual information",
             "sign-error-mean": "sign error, mean", "sign-error-max": "sign error, largest",
             "partial": "partial Spearman"}
    label = [f"baseline: {key[4]}" if key[0] == BASELINE else quantity(*key)
             for key in power[_KEY].itertuples(index=False)]
    table = pd.DataFrame({"quantity": label, "kind": power["kind"], "n": power["n"]})
    for name, shown in names.items():
        if power[name].notna().any():
            for end, word in {"": "", "-low": " low", "-high": " high"}.items():
                table[shown + word] = power[name + end].astype(float)
            if name == "granulated":
                for psi in (c for c in power if c.startswith("psi:")):
                    table[psi] = power[psi].astype(float)
    return table.sort_values("granulated", ascending=False, kind="stable").reset_index(drop=True)


def checkpoints(readings: pd.DataFrame) -> pd.DataFrame:
    """One row per subject: what it is and what was found.

    Columns: `subject`, the labels, training and test loss and error and their gaps (in units of the loss, and as
    shares of the examples), `trace` of the Hessian (loss/weight²), `distance` (Frobenius, weight units), the total
    of `ju2022` by variant, each with ` stderr`; `failed` readings. Quantities nobody measured have no column.
    """
    frame = tidy(readings)
    table = subjects(frame).reset_index()
    wanted = [(name, "gap", name.replace(" ", "-")) for name in
              ("loss train", "loss test", "loss gap", "error train", "error test", "error gap")]
    wanted += [("trace", "hessian-trace", ""), ("distance", "distance", "frobenius")]
    found = [(name, select(frame, measure, term=term, layers=("total",) if measure == "distance" else ("total", "")))
             for name, measure, term in wanted]
    ours = select(frame, "ju2022", term="total")
    found += [(f"ju2022 ({v})" if v else "ju2022", ours[ours["variant"] == v]) for v in ours["variant"].unique()]
    for name, rows in found:
        rows = rows.drop_duplicates("subject").set_index("subject")[["value", "stderr"]].reindex(table["subject"])
        if rows["value"].notna().any():
            table[name], table[f"{name} stderr"] = rows["value"].to_numpy(), rows["stderr"].to_numpy()
    failed = frame[frame["error"] != ""].groupby("subject").size()
    return table.assign(failed=failed.reindex(table["subject"]).fillna(0).astype(int).to_numpy())


def all_tables(readings: pd.DataFrame, correlations: pd.DataFrame | None = None, *, by: str | None = None,
               classes: int | None = None, power: pd.DataFrame | None = None) -> dict[str, pd.DataFrame]:
    """Every table that these readings can fill, by file name.

    by: label by which checkpoints are averaged; None takes `noise` or else `method` where they vary.
    """
    frame = tidy(readings)
    by = by or usual_grouping(frame)
    tables = {"bounds": bound_comparison(readings), "published-bounds": published.comparison(readings),
              "noise-stability": noise_stability_vs_hessian(readings, by=by, classes=classes),
              "hessian-validity": hessian_validity(readings, by=by),
              "noise-stability-published": published_noise_stability(readings, by=by),
              "noise-stability-layers": layer_noise_stability(readings, by=by),
              "correlations": pd.DataFrame() if correlations is None else correlation(correlations),
              "predictive-power": pd.DataFrame() if power is None else predictive(power),
              "checkpoints": checkpoints(readings)}
    return {name: table for name, table in tables.items() if len(table)}


def write_tables(tables: Mapping[str, pd.DataFrame], folder: Path) -> list[Path]:
    """Write each table as `NAME.csv` (full precision), `NAME.md` and `NAME.tex` (booktabs); returns the paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, table in tables.items():
        if not name or Path(name).name != name:
            raise InputError(f"a table is named {name!r}; expected a plain file name without folders; rename it")
        texts = {"csv": table.to_csv(index=False, float_format="%.17g", lineterminator="\n"),
                 "md": markup.markdown(table), "tex": markup.latex(table)}
        for ending, text in texts.items():
            written.append(folder / f"{name}.{ending}")
            written[-1].write_text(text, encoding="utf-8", newline="\n")
    return written


def mean(values: Iterable[float], stderrs: Iterable[float]) -> tuple[float, float]:
    """Mean and its standard error: from the spread of several values (ddof 1), or the one value's own."""
    values, stderrs = np.asarray(values, dtype=float), np.asarray(stderrs, dtype=float)
    there = np.isfinite(values)
    if there.sum() <= 1:
        return (values[there][0], stderrs[there][0]) if there.any() else (np.nan, np.nan)
    return float(values[there].mean()), float(values[there].std(ddof=1) / np.sqrt(there.sum()))


def quantity(measure: str, variant: str, layer: str, sigma: float, term: str) -> str:
    """`noise-stability · total · σ = 0.01 · stability`."""
    at = "" if np.isnan(sigma) else f"σ = {sigma:g}"
    return " · ".join(filter(None, [f"{measure} ({variant})" if variant else measure, layer, at, term]))


_KEY = ["measure", "variant", "layer", "sigma", "term"]
_NOTHING = pd.DataFrame({"value": [], "stderr": []}, dtype=float)


def _curve(frame: pd.DataFrame, measure: str, term: str,
           layers: Iterable[str] = CHECKPOINT_WIDE) -> dict[float, pd.DataFrame]:
    """sigma -> value and stderr by subject; of several readings of one subject the first request's."""
    rows = select(frame, measure, term=term, layers=layers)
    rows = rows[rows["sigma"].notna() & np.isfinite(rows["value"])].drop_duplicates(["subject", "sigma"])
    return {sigma: part.set_index("subject")[["value", "stderr"]] for sigma, part in rows.groupby("sigma")}


def agreement(differences: pd.DataFrame) -> float:
    """The share of rows whose `value` is zero within its 95 % interval; nan where there is none.

    Checkpoints that share their noise err together, so their mean says less than its spread suggests.
    """
    known = differences[differences["stderr"].notna()]
    return float((known["value"].abs() <= Z * known["stderr"]).mean()) if len(known) else np.nan


def _violated(rows: pd.DataFrame) -> str:
    checks = rows[rows["term"].str.startswith("assumes:")]
    count = checks["subject"].nunique()
    broken = checks[checks["value"] == 0]["term"].str.removeprefix("assumes:").value_counts(sort=False)
    return "; ".join(name if times == count else f"{name} ({times} of {count})" for name, times in broken.items())


def _log10(values: pd.Series) -> pd.Series:
    return np.log10(values.where(values > 0))


def _note(row: pd.Series) -> str:
    parts = [row["flag"]]
    parts += [f"{row['nonfinite']} infinite"] if row["nonfinite"] else []
    parts += [f"{row['missing']} missing"] if row["missing"] else []
    parts += [f"{row['tied-pairs']} of {row['pairs']} pairs tied"] if row["tied-pairs"] else []
    return "; ".join(part for part in parts if part)
