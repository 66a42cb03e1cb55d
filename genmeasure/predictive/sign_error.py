"""The robust sign error over environments (Dziugaite et al. 2020, arXiv:2010.11924)."""

from __future__ import annotations

import itertools

import numpy as np

from genmeasure.correlate import order
from genmeasure.predictive.grid import Grid

LEAST_EFFECTIVE = 12.0
"""Effective number of pairs that an environment needs (public code of the paper)."""


def sign_error(x: np.ndarray, g: np.ndarray, grid: Grid, counts: np.ndarray, *, test_examples: int,
               least_effective: float = LEAST_EFFECTIVE) -> tuple[np.ndarray, list[str]]:
    """Sign errors [resamples, environments] in [0, 1], nan where too few pairs count, and each environment's axis.

    An environment is a pair of settings that differ in one hyper-parameter; its pairs are those of their seeds. A pair
    has the error (1 - sgn dx sgn dg)/2 and the weight (w - 1/2)_+, w = max(0, 1 - 2 exp(-2 n (dg/2)²))², which is 0
    where the test set of n = `test_examples` examples cannot tell the gaps apart. g: gaps of the 0-1 error, in [0, 1].
    An environment with sum(weight)²/sum(weight²) below `least_effective` does not count.
    """
    weight = pair_weight(g[:, None] - g, test_examples)
    error = (1 - order(x) * order(g)) / 2
    settings = grid.cells(range(len(grid.names)))
    first = {setting: int(np.argmax(settings == setting)) for setting in range(settings.max() + 1)}
    found, axes = [], []
    for a, b in itertools.combinations(first, 2):
        differing = np.flatnonzero(grid.codes[first[a]] != grid.codes[first[b]])
        if len(differing) != 1:
            continue
        here, there = settings == a, settings == b
        part = np.ix_(here, there)

        def total(matrix: np.ndarray, here: np.ndarray = here, there: np.ndarray = there) -> np.ndarray:
            return np.einsum("rb,rb->r", counts[:, here] @ matrix, counts[:, there])
        mass, squares = total(weight[part]), total(weight[part] ** 2)
        enough = mass**2 >= least_effective * np.where(squares > 0, squares, np.inf)
        found.append(np.where(enough, total((weight * error)[part]) / np.where(mass > 0, mass, 1), np.nan))
        axes.append(grid.names[differing[0]])
    return np.stack(found, 1) if found else np.empty((len(counts), 0)), axes


def pair_weight(difference: np.ndarray, test_examples: int) -> np.ndarray:
    """(w - 1/2)_+ of a difference between two gaps of the 0-1 error."""
    certain = np.maximum(0, 1 - 2 * np.exp(-2 * test_examples * (np.abs(difference) / 2) ** 2)) ** 2
    return np.maximum(0, certain - 0.5)
