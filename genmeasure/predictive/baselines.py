"""Quantities whose predictive power is known, beside which the others are read."""

from __future__ import annotations

import numpy as np

NOISE = 0.1


def baselines(gaps: np.ndarray, *, seed: int, given: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """By name, values [n]: the gap itself, the gap with noise of a tenth of its spread, its negative, random numbers, a
    constant; and `given` (such as one over the sample size), where it is known."""
    generator = np.random.default_rng(seed)
    spread = np.nanstd(gaps)
    found = {"oracle": gaps, "noisy-oracle": gaps + NOISE * spread * generator.standard_normal(len(gaps)),
             "anti-oracle": -gaps, "random": generator.standard_normal(len(gaps)), "constant": np.zeros(len(gaps))}
    return found if given is None else found | {"given": given}
