"""The table of predictive power: every quantity, every statistic, with intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from genmeasure import correlate as correlation
from genmeasure.errors import InputError
from genmeasure.predictive.baselines import baselines
from genmeasure.predictive.granulated import granulated
from genmeasure.predictive.grid import Grid
from genmeasure.predictive.mutual_information import mutual_information
from genmeasure.predictive.partial import partial_spearman
from genmeasure.predictive.sign_error import sign_error
from genmeasure.readings import check_labels, subjects, tidy

BASELINE = "baseline"
STATISTICS = ("tau-a", "granulated", "mutual-information", "mutual-information-equal", "sign-error-max",
              "sign-error-90", "sign-error-mean", "partial")


def predictive_power(readings: pd.DataFrame, *, axes: Sequence[str], gap: str = "loss-gap",
                     cluster: str | Sequence[str] | None = None, given: str | None = None,
                     test_examples: int | None = None, resamples: int = 200, seed: int = 0) -> pd.DataFrame:
    """How well every checkpoint-wide quantity, and every baseline, predicts the gap; one row each. The terms of a bound
    that has a total are left out, and so is what was measured on test data: the gap and its parts predict nothing.

    axes: label columns that are hyper-parameters; checkpoints that agree in all of them are repeats. gap: term of the
    measure `gap`; the sign error takes `error-gap`. cluster: label columns; checkpoints that agree in all of them are
    resampled together. given: a label column of numbers, held fixed in `partial`. test_examples: size of the test set,
    without which there is no sign error.

    Columns: `measure` (`baseline` for `genmeasure.predictive.baselines`), `variant`, `kind`, `layer`, `sigma`, `term`;
    `n` checkpoints, `clusters`, `skipped-cells` of the granulated coefficient, `environments` of the sign error;
    `tau-a` (Kendall); `granulated` and `psi:AXIS` (Jiang et al. 2020); `mutual-information` (given the settings of both
    checkpoints; blind to the sign) and its minimising `conditioning`; `mutual-information-equal` (within equal
    settings); `sign-error-max`, `-90` (percentile), `-mean` over environments (Dziugaite et al. 2020); `partial`
    (Spearman's rho). Each statistic has `-low` and `-high`, its 95 % bootstrap percentile interval over clusters. No
    statistic has a unit; empty cells are undefined. Raises `InputError` for unknown labels or terms.
    """
    frame = tidy(readings)
    check_labels(frame, [*axes, *([given] if given else [])])
    if not axes:
        raise InputError("no hyper-parameters came; name the label columns that make the grid with axes=…")
    membership = correlation.clusters(frame, cluster)
    settings = subjects(frame)
    table, kinds = correlation.quantities_of(frame, gap)
    keys = table.index.to_frame(index=False)
    table = table[~(correlation.redundant(keys) | tested(keys)).to_numpy()]
    table = table.reindex(columns=membership.index)
    gaps = correlation.gaps_of(frame, gap).reindex(membership.index).to_numpy()
    errors = correlation.gaps_of(frame, "error-gap").reindex(membership.index).to_numpy() if test_examples else None
    fixed = pd.to_numeric(settings[given]).to_numpy(float) if given else None
    grid = Grid.of(settings[list(axes)])
    resample = correlation.Resample(membership.to_numpy(), resamples, seed)
    rows = []
    for key, values in zip(table.index, table.to_numpy(), strict=True):
        found = _row(values, gaps, errors, fixed, grid, resample, test_examples)
        if found is not None:
            rows.append({**dict(zip(correlation.KEY, key, strict=True)), "kind": kinds[key], **found})
    for name, values in baselines(gaps, seed=seed, given=fixed).items():
        found = _row(values, gaps, errors, fixed, grid, resample, test_examples)
        if found is not None:
            rows.append({"measure": BASELINE, "variant": "", "layer": "", "sigma": "", "term": name, "kind": "",
                         **found})
    columns = [*correlation.KEY[:2], "kind", *correlation.KEY[2:], "n", "clusters", "skipped-cells", "environments",
               "conditioning", *(f"{name}{end}" for name in STATISTICS[:2] for end in ("", "-low", "-high")),
               *(f"psi:{axis}" for axis in axes),
               *(f"{name}{end}" for name in STATISTICS[2:] for end in ("", "-low", "-high"))]
    result = pd.DataFrame(rows, columns=columns)
    return result.assign(sigma=result["sigma"].replace("", np.nan).astype(float))


def tested(frame: pd.DataFrame) -> pd.Series:
    """Rows of the measure `gap` that take test data."""
    return (frame["measure"] == "gap") & frame["term"].str.contains("-test|-gap")


def _row(values, gaps, errors, fixed, grid: Grid, resample, test_examples) -> dict | None:
    there = ~np.isnan(values) & np.isfinite(gaps)
    if there.sum() < correlation.LEAST:
        return None
    x, g, part = values[there], gaps[there], grid.chosen(there)
    if correlation.constant(x):
        x = np.zeros(len(x))  # rounding is no order
    counts = np.concatenate([np.ones((1, len(x))), resample(there)])
    draws: dict[str, np.ndarray] = {"tau-a": _tau_a(x, g, counts)}
    psi, skipped = granulated(x, g, part, counts)
    draws["granulated"] = _mean(psi)
    draws["mutual-information"], chosen = mutual_information(x, g, part, counts)
    draws["mutual-information-equal"], _ = mutual_information(x, g, part, counts, conditioning="equal")
    environments = 0
    if errors is not None and np.isfinite(errors[there]).all():
        found, _ = sign_error(x, errors[there], part, counts, test_examples=test_examples)
        environments = int((~np.isnan(found[0])).sum())
        draws["sign-error-max"], draws["sign-error-mean"] = _largest(found), _mean(found)
        draws["sign-error-90"] = _percentile(found, 0.9)
    if fixed is not None and np.isfinite(fixed[there]).all():
        draws["partial"] = partial_spearman(x, g, fixed[there], counts)
    row = {"n": int(there.sum()), "clusters": resample.clusters(there), "skipped-cells": skipped,
           "environments": environments, "conditioning": " ".join(chosen),
           **{f"psi:{name}": value for name, value in zip(grid.names, psi[0], strict=True)}}
    for name, values in draws.items():
        row |= correlation.with_interval(name, float(values[0]), values[1:])
    return row


def _tau_a(x: np.ndarray, g: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Kendall's tau-a [resamples] over pairs of different checkpoints."""
    agreement = correlation.order(x) * correlation.order(g)
    pairs = counts.sum(1) ** 2 - (counts**2).sum(1)
    return np.einsum("rn,rn->r", counts @ agreement, counts) / np.where(pairs > 0, pairs, np.nan)


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the defined entries of each row [resamples]."""
    there = ~np.isnan(values)
    return np.where(there, values, 0).sum(1) / np.where(there.any(1), there.sum(1), np.nan)


def _largest(values: np.ndarray) -> np.ndarray:
    largest = np.where(np.isnan(values), -np.inf, values).max(1, initial=-np.inf)
    return np.where(np.isfinite(largest), largest, np.nan)


def _percentile(values: np.ndarray, share: float) -> np.ndarray:
    there = ~np.isnan(values)
    return np.array([np.quantile(row[mask], share) if mask.any() else np.nan
                     for row, mask in zip(values, there, strict=True)])
