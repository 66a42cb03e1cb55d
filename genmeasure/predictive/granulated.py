"""The granulated Kendall coefficient (Jiang et al. 2020, arXiv:1912.02178, eq. 5 and 6)."""

from __future__ import annotations

import numpy as np

from genmeasure.correlate import order
from genmeasure.predictive.grid import Grid, one_hot


def granulated(x: np.ndarray, g: np.ndarray, grid: Grid, counts: np.ndarray) -> tuple[np.ndarray, int]:
    """psi [resamples, p] of every hyper-parameter, nan where it has no pair; and the number of cells left out.

    psi_i is the mean, over the cells in which hyper-parameter i alone varies, of Kendall's tau-a between quantity and
    gap; the granulated coefficient is the mean of psi over i. Seeds that are no hyper-parameter repeat a setting:
    checkpoints that agree in all hyper-parameters are not compared. Cells with a single setting, or in which all gaps
    are equal, are left out.
    """
    agreement, differ = order(x) * order(g), order(g) != 0
    psi, skipped = [], 0
    for axis in range(len(grid.names)):
        cells, value = grid.others(axis), grid.codes[:, axis]
        pairs = (cells[:, None] == cells) & (value[:, None] != value)
        members = one_hot(cells)

        def per_cell(matrix: np.ndarray, members: np.ndarray = members) -> np.ndarray:
            return (counts @ matrix * counts) @ members
        compared, varied = per_cell(pairs.astype(float)), per_cell((pairs & differ).astype(float))
        tau = np.where(varied > 0, per_cell(agreement * pairs) / np.where(compared > 0, compared, 1), np.nan)
        skipped += int(((pairs & differ) @ np.ones(len(x)) @ members == 0).sum())
        present = ~np.isnan(tau)
        psi.append(np.where(present, tau, 0).sum(1) / np.where(present.any(1), present.sum(1), np.nan))
    return np.stack(psi, 1), skipped
