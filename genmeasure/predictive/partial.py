"""Partial rank correlation: what remains of a correlation when a third quantity is held fixed."""

from __future__ import annotations

import numpy as np

from genmeasure.correlate import spearman


def partial_spearman(x: np.ndarray, g: np.ndarray, given: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(r_xg - r_xz r_gz) / sqrt((1 - r_xz²)(1 - r_gz²)) [resamples] of Spearman's coefficients, z = `given` [n].

    nan where z orders the checkpoints exactly as x or g does, and nothing remains.
    """
    direct, of_x, of_g = spearman(x, g, counts), spearman(x, given, counts), spearman(g, given, counts)
    left = (1 - of_x**2) * (1 - of_g**2)
    there = left > 1e-12
    return np.clip(np.where(there, (direct - of_x * of_g) / np.sqrt(np.where(there, left, 1)), np.nan), -1, 1)
