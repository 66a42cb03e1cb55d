"""The score of the competition Predicting Generalization in Deep Learning, as its starting kit computes it."""

from __future__ import annotations

import numpy as np

from genmeasure.errors import InputError
from genmeasure.predictive.grid import Grid, one_hot


def pgdl(x: np.ndarray, g: np.ndarray, grid: Grid) -> float:
    """100 times the conditional mutual information of the public code (2020), for comparison with published scores.

    Unlike `mutual_information`: sets S of exactly two hyper-parameters, ordered pairs with those of a checkpoint with
    itself, a tie counts as "smaller", and information and entropy are averaged over the conditions with equal weight
    before their quotient is taken. Raises `InputError` for fewer than two hyper-parameters and for a grid in which a
    combination is missing or occurs twice.
    """
    if len(grid.names) < 2:
        raise InputError(f"{len(grid.names)} hyper-parameters came; the PGDL score conditions on two of them")
    if not grid.complete():
        raise InputError("a grid came with missing or repeated combinations; the PGDL score needs each exactly once")
    larger = [x[:, None] > x, g[:, None] > g]
    scores = []
    for subset in grid.subsets([2]):
        members = one_hot(grid.cells(subset))
        joint = np.stack([members.T @ ((larger[0] == a) & (larger[1] == b)) @ members
                          for a in (False, True) for b in (False, True)], -1)
        joint = (joint / joint.sum(-1, keepdims=True)).reshape(-1, 2, 2)
        of_x, of_g = joint.sum(2, keepdims=True), joint.sum(1, keepdims=True)
        information, entropy = _mean(joint, joint / (of_x * of_g + (joint == 0))), _mean(of_g, 1 / (of_g + (of_g == 0)))
        scores.append(information / entropy if entropy > 0 else np.nan)
    return 100 * float(np.nanmin(scores))


def _mean(weight: np.ndarray, ratio: np.ndarray) -> float:
    return float(np.where(weight > 0, weight * np.log(np.where(weight > 0, ratio, 1)), 0).sum() / len(weight))
