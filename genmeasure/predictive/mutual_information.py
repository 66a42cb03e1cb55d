"""Conditional mutual information between the orders by a quantity and by the gap (Jiang et al. 2020, eq. 8 to 10)."""

from __future__ import annotations

import numpy as np

from genmeasure.correlate import order
from genmeasure.predictive.grid import Grid, one_hot

LARGEST = 2
"""Hyper-parameters that are conditioned on at most."""


def mutual_information(x: np.ndarray, g: np.ndarray, grid: Grid, counts: np.ndarray, *,
                       conditioning: str = "both") -> tuple[np.ndarray, tuple[str, ...]]:
    """K = min over sets S of at most two hyper-parameters of I(V_x, V_g | U_S) / H(V_g | U_S), [resamples] in [0, 1],
    and the minimising S of the first resample.

    V is the sign of a difference between two checkpoints, over ordered pairs of different ones. conditioning: U_S are
    the values of S of "both" checkpoints, or only pairs with "equal" values count, by that value. K does not tell a
    quantity from its negative. nan where no gap differs.
    """
    signs = [(order(x) == a) & (order(g) == b) & ~np.eye(len(x), dtype=bool) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    signs = [matrix.astype(float) for matrix in signs]
    best, chosen = np.full(len(counts), np.nan), ()
    for subset in grid.subsets(range(LARGEST + 1)):
        joint = _joint(signs, grid.cells(subset), counts, conditioning)
        ratio = _ratio(joint)
        if ratio[0] < best[0] or np.isnan(best[0]):
            chosen = tuple(grid.names[i] for i in subset)
        best = np.fmin(best, ratio)
    return best, chosen


def _joint(signs: list[np.ndarray], cells: np.ndarray, counts: np.ndarray, conditioning: str) -> np.ndarray:
    """Weights of the pairs: [resamples, conditions, 3 (sign of x), 3 (sign of g)]."""
    members = one_hot(cells)
    result = []
    for matrix in signs:
        rows = []
        for cell in range(members.shape[1]):
            there = cells == cell
            found = (counts[:, there] @ matrix[there] * counts) @ members
            rows.append(found if conditioning == "both" else found[:, [cell]])
        result.append(np.concatenate(rows, 1))
    return np.stack(result, 2).reshape(len(counts), -1, 3, 3)


def _ratio(joint: np.ndarray) -> np.ndarray:
    """I/H [resamples]; conditions weigh by their pairs."""
    total = joint.sum((2, 3), keepdims=True)
    of_x, of_g = joint.sum(3, keepdims=True), joint.sum(2, keepdims=True)
    information = _sum(joint, joint * total, of_x * of_g)
    entropy = _sum(of_g, total, of_g)
    return np.where(entropy > 1e-12 * total.sum((1, 2, 3)), information / np.where(entropy > 0, entropy, 1), np.nan)


def _sum(weight: np.ndarray, above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """sum of weight * log(above / below), 0 where the weight is 0."""
    there = weight > 0
    ratio = np.where(there, above, 1) / np.where(there, below, 1)
    return (weight * np.log(ratio)).sum((1, 2, 3))
