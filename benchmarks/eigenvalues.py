"""The ten largest eigenvalues against PyHessian's power iteration with deflation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import ours
import theirs
from harness import Row, Setting, interleaved, median_seconds, percent, say
from networks import piecewise_linear

from genmeasure.risk import HESSIAN_PRODUCT

COUNT, RTOL, CONVERGED = 10, 1e-3, 1e-5
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6)
"""Of PyHessian, on the change between two products; its default comes first."""
MOST = 300
"""Products of PyHessian for one eigenvalue; its default of 100 is too few here."""


def worst(found: Sequence[float], converged: Sequence[float]) -> float:
    """Largest relative deviation, each eigenvalue from its own converged value."""
    return max(abs(a / b - 1) for a, b in zip(found, converged, strict=True))


def eigenvalues(setting: Setting) -> Iterator[Row]:
    """Lanczos to its own tolerance, PyHessian at the loosest tolerance that brings every eigenvalue to 0.1 %."""
    case = piecewise_linear(setting.examples(128, 64), setting.device.type)
    subject, count = case.subject, setting.of(COUNT, 3)
    converged = ours.eigenvalues(subject, count, CONVERGED, seed=99, most=400).value
    tool, warm = theirs.PyHessian(subject), theirs.PyHessian(case.few)
    ours.eigenvalues(case.few, 1, 1.0, 0, 10)
    warm.eigenvalues(1, 1.0, 2, 0)
    our_runs = []
    for number, tol in enumerate(TOLERANCES):  # tries that fail cost it nothing
        runs = interleaved({"ours": lambda _, seed=number: ours.eigenvalues(subject, count, RTOL, seed, 200),
                            "theirs": lambda _, seed=number, tol=tol: tool.eigenvalues(count, tol, MOST, seed)},
                           1, setting.device)
        our_runs += runs["ours"]
        values, products = runs["theirs"][0].result
        reached = worst(values, converged)
        say(f"  PyHessian at tol={tol:g}: {products} products, {median_seconds(runs['theirs']):.3g} s, within "
            f"{percent(reached)}")
        if reached <= RTOL:
            break
    mine = max(worst(run.result.value, converged) for run in our_runs)
    say(f"  converged {converged}; ours {our_runs[0].result.value}; theirs {values}")
    note = "" if reached <= RTOL else "; NOT reached by theirs, so a lower limit"
    yield Row(f"{count} largest eigenvalues, {case.label}, PyHessian's power iteration / genmeasure",
              median_seconds(our_runs), median_seconds(runs["theirs"]),
              f"every eigenvalue within {percent(RTOL)} of its converged value (reached: ours {percent(mine)} by its "
              f"rule on residuals, theirs {percent(reached)} at tol={tol:g}, its loosest power of ten that does){note}",
              ours.median_passes(our_runs), HESSIAN_PRODUCT * products)
