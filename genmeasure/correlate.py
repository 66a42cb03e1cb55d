"""Predictive power of every measured quantity: its correlation with the generalization gap over many checkpoints.

Checkpoints (or clusters of them) are resampled, never pairs. A resample is a vector of counts w [subjects]; with
counts every coefficient is a quadratic form, so all resamples of one quantity are a few matrix products:

    Spearman: rank_i = sum_j w_j ([x_j < x_i] + [x_j = x_i] / 2), then the weighted Pearson coefficient of the ranks
    Kendall tau-b: w'Sw / sqrt(w'|A|w w'|B|w),  A_ij = sgn(x_i - x_j), B_ij = sgn(g_i - g_j), S = A * B entrywise
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.stats

from genmeasure.errors import InputError, unknown
from genmeasure.readings import CHECKPOINT_WIDE, check_labels, groups, subjects, tidy

LEAST = 3
"""Fewer checkpoints have no correlation worth a row."""
LEVEL = 0.95
ROUNDING = 1e-12
"""Values whose relative spread is below this are constant."""
COEFFICIENTS = ("pearson", "pearson-log", "spearman", "kendall")
KEY = ["measure", "variant", "layer", "sigma", "term"]
COLUMNS = ("group", "gap", *KEY[:2], "kind", *KEY[2:], "n", "clusters", "missing", "nonfinite", "pairs", "tied-pairs",
           "tied-pairs-gap", "flag", *(f"{c}{end}" for c in COEFFICIENTS for end in ("", "-low", "-high")))
FLAGS = ("assumes:", "vacuous", "not-defined", "density@")
"""Terms that answer yes or no, or are points of a curve; they are no quantities to rank checkpoints by."""


def correlate(readings: pd.DataFrame, *, gap: str = "loss-gap", cluster: str | Sequence[str] | None = None,
              by: str | None = None, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Correlation of every checkpoint-wide quantity with the gap, one row per quantity and group.

    A positive coefficient says: the larger the quantity, the larger the gap.
    gap: term of the measure `gap`. cluster: label columns; checkpoints that agree in all of them are resampled
    together. by: a label column; rows within each of its groups follow those of all checkpoints.

    Columns: `group` (`all` or `label=value`), `gap`, `measure`, `variant`, `kind`, `layer`, `sigma`, `term`;
    `n` checkpoints, `clusters` independent units, `missing` checkpoints without this quantity or its gap,
    `nonfinite` infinite values (they keep their rank for Spearman and Kendall and are left out of both Pearsons),
    `pairs`, `tied-pairs` (of the quantity), `tied-pairs-gap`, `flag` (constant quantities or gaps have
    coefficients 0); `pearson`, `pearson-log` (of the quantity's logarithm, where all are positive), `spearman`,
    `kendall` (tau-b), each with its 95 % bootstrap percentile interval `-low` and `-high`. Coefficients have no unit.
    Resamples in which a coefficient is undefined are left out. Quantities of fewer than 3 checkpoints have no row.
    Raises `InputError` for readings without that gap or an unknown label.
    """
    frame = tidy(readings)
    membership = clusters(frame, cluster)
    gaps = gaps_of(frame, gap)
    table, kinds = quantities_of(frame, gap)
    wanted = groups(frame, None) | (groups(frame, by) if by else {})
    rows = []
    for group, members in wanted.items():
        some = table.reindex(columns=members)
        resample = Resample(membership[members].to_numpy(), resamples, seed)
        for key, values in zip(some.index, some.to_numpy(), strict=True):
            found = relate(values, gaps.reindex(members).to_numpy(), resample)
            if found is not None:
                rows.append({"group": group, "gap": gap, "kind": kinds[key], **dict(zip(KEY, key, strict=True)),
                             **found})
    result = pd.DataFrame(rows, columns=list(COLUMNS))
    return result.assign(sigma=result["sigma"].replace("", np.nan).astype(float))


def clusters(frame: pd.DataFrame, cluster: str | Sequence[str] | None) -> pd.Series:
    """subject -> number of its cluster: those that agree in all label columns `cluster`, or each its own."""
    cluster = [cluster] if isinstance(cluster, str) else list(cluster or [])
    check_labels(frame, cluster)
    labels = subjects(frame)
    return labels.groupby(cluster).ngroup() if cluster else pd.Series(range(len(labels)), index=labels.index)


def relate(values: np.ndarray, gaps: np.ndarray, resample: Resample) -> dict | None:
    """Counts, flag, coefficients and intervals of one quantity; None for fewer than 3 checkpoints.

    values, gaps: [subjects], nan where missing. resample: made for the same subjects.
    """
    there = ~np.isnan(values) & np.isfinite(gaps)
    n = int(there.sum())
    if n < LEAST:
        return None
    x, g, counts = values[there], gaps[there], resample(there)
    finite = np.isfinite(x)
    result = {"n": n, "clusters": resample.clusters(there), "missing": len(values) - n,
              "nonfinite": int((~finite).sum()), "pairs": n * (n - 1) // 2, "tied-pairs": _tied(x),
              "tied-pairs-gap": _tied(g), "flag": ""}
    if constant(x) or constant(g):
        result["flag"] = "constant quantity" if constant(x) else "constant gap"
        zero = [c for c in COEFFICIENTS if c != "pearson-log" or (x > 0).all()]
        return result | {f"{c}{end}": 0.0 for c in zero for end in ("", "-low", "-high")}
    result |= with_interval("spearman", float(scipy.stats.spearmanr(x, g).statistic), spearman(x, g, counts))
    result |= with_interval("kendall", float(scipy.stats.kendalltau(x, g).statistic), kendall(x, g, counts))
    part = there.copy()
    part[there] = finite
    if finite.sum() < LEAST or constant(x[finite]) or constant(g[finite]):
        result["flag"] = "too few different finite values for Pearson"
        return result
    scales = {"pearson": x[finite] / np.abs(x[finite]).max()}
    if (x > 0).all() and not constant(np.log(x[finite])):
        scales["pearson-log"] = np.log(x[finite])
    for name, scaled in scales.items():
        point = float(scipy.stats.pearsonr(scaled, g[finite]).statistic)
        result |= with_interval(name, point, pearson(scaled, g[finite], resample(part)))
    return result


def pearson(x: np.ndarray, g: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Pearson's r in every resample. x, g: [n]; counts: [resamples, n]; returns [resamples], nan where undefined."""
    return _pearson((x - x.mean()) / x.std(), (g - g.mean()) / g.std(), counts)


def spearman(x: np.ndarray, g: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Spearman's rho in every resample, ties averaged. Shapes as in `pearson`."""
    return _pearson(_ranks(x, counts), _ranks(g, counts), counts)


def kendall(x: np.ndarray, g: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Kendall's tau-b in every resample. Shapes as in `pearson`."""
    a, b = order(x), order(g)

    def pairs(matrix: np.ndarray) -> np.ndarray:
        return np.einsum("rn,rn->r", counts @ matrix, counts)

    return _divide(pairs(a * b), np.sqrt(pairs(np.abs(a)) * pairs(np.abs(b))))


def order(x: np.ndarray) -> np.ndarray:
    """[n, n] signs of x_i - x_j, also between infinite values."""
    return (x[:, None] > x).astype(float) - (x[:, None] < x)


def constant(x: np.ndarray) -> bool:
    """Whether all values agree up to rounding."""
    low, high = x.min(), x.max()
    return bool(low == high) or bool(high / 2 - low / 2 <= ROUNDING * max(abs(low), abs(high)) < np.inf)


def resample_counts(clusters: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """How often each subject occurs in each bootstrap resample of clusters: [resamples, subjects]."""
    _, membership = np.unique(clusters, return_inverse=True)
    k = int(membership.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(k, np.full(k, 1 / k), size=resamples)
    return drawn[:, membership].astype(float)


def percentile_interval(draws: np.ndarray, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The central 95 % of the defined draws."""
    if np.isnan(draws).all():
        return np.nan, np.nan
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=axis)
    return low, high


class Resample:
    """mask [subjects] -> counts [resamples, chosen]; the same for every quantity that exists for the same subjects."""

    def __init__(self, membership: np.ndarray, resamples: int, seed: int):
        self.membership, self.resamples, self.seed = membership, resamples, seed
        self._known: dict[bytes, np.ndarray] = {}

    def __call__(self, mask: np.ndarray) -> np.ndarray:
        key = mask.tobytes()
        if key not in self._known:
            self._known[key] = resample_counts(self.membership[mask], self.resamples, self.seed)
        return self._known[key]

    def clusters(self, mask: np.ndarray) -> int:
        return len(np.unique(self.membership[mask]))


def redundant(frame: pd.DataFrame) -> pd.Series:
    """Rows that rank checkpoints as another row does, or are a part of it: the terms of a bound that has a total, and
    the parabolas beside the trace."""
    summed = frame["measure"].isin(frame.loc[frame["term"] == "total", "measure"])
    return (summed & ~frame["term"].isin(["total", "log10"])) | frame["term"].isin(["taylor", "paper"])


def gaps_of(frame: pd.DataFrame, gap: str) -> pd.Series:
    rows = frame[(frame["measure"] == "gap") & (frame["error"] == "") & frame["value"].notna()]
    if rows.empty:
        raise InputError("the readings hold no value of the measure 'gap'; expected one for every checkpoint; "
                         "give the subjects test data and add 'gap' to the measures")
    if gap not in set(rows["term"]):
        raise unknown("gap", gap, rows["term"].unique())
    return rows[rows["term"] == gap].drop_duplicates("subject").set_index("subject")["value"]


def quantities_of(frame: pd.DataFrame, gap: str) -> tuple[pd.DataFrame, dict]:
    """Values [quantities x subjects], and each quantity's kind."""
    rows = frame[(frame["error"] == "") & frame["layer"].isin(CHECKPOINT_WIDE) & frame["value"].notna()
                 & ~frame["term"].str.startswith(FLAGS) & ~((frame["measure"] == "gap") & (frame["term"] == gap))]
    # An empty text takes the place of a missing sigma: nan is a poor part of a key.
    rows = rows.assign(sigma=rows["sigma"].astype(object).where(rows["sigma"].notna(), ""))
    table = rows.pivot_table("value", index=KEY, columns="subject", aggfunc="first", sort=False)
    return table, rows.drop_duplicates(KEY).set_index(KEY)["kind"].to_dict()


def with_interval(name: str, point: float, draws: np.ndarray) -> dict[str, float]:
    low, high = percentile_interval(draws)
    return {name: point, f"{name}-low": float(low), f"{name}-high": float(high)}


def _ranks(x: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[resamples, n]; ranks up to a constant."""
    return counts @ ((x[:, None] < x) + 0.5 * (x[:, None] == x))


def _pearson(x: np.ndarray, g: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """x, g: [n] or [resamples, n]."""
    total = counts.sum(1, keepdims=True)
    x = x - (counts * x).sum(1, keepdims=True) / total
    g = g - (counts * g).sum(1, keepdims=True) / total
    return _divide((counts * x * g).sum(1), np.sqrt((counts * x * x).sum(1) * (counts * g * g).sum(1)))


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    defined = below > ROUNDING
    return np.clip(np.where(defined, above / np.where(defined, below, 1.0), np.nan), -1.0, 1.0)


def _tied(x: np.ndarray) -> int:
    """Pairs with the same value."""
    _, repeats = np.unique(x, return_counts=True)
    return int((repeats * (repeats - 1) // 2).sum())
