"""Our side of every comparison. Each run starts from a subject that remembers nothing of an earlier one."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from harness import Timed

import genmeasure as gm
from genmeasure import study
from genmeasure.curvature.forms import hessian_forms
from genmeasure.curvature.gauss_newton import gauss_newton_forms, linear_layers
from genmeasure.curvature.taps import find_taps
from genmeasure.estimate import Estimate
from genmeasure.shared import Shared
from genmeasure.subject import Subject

AUDITED = ("distance", "hessian-trace", "hessian-distance", "noise-stability", "hessian-top")
"""The measures of a whole audit; all bounds come with them."""
MOST_PASSES = 10_000
"""Of drawn measures: what was asked for ends them, not this."""


@dataclass(frozen=True)
class Answer:
    """What one run gave, and its cost in forward-equivalents over the data."""

    value: Any
    passes: float


def median_passes(runs: Sequence[Timed[Answer]]) -> float:
    return statistics.median(run.result.passes for run in runs)


def relative(estimate: Estimate) -> float:
    """Relative standard error."""
    return estimate.stderr / abs(estimate.value)


@dataclass(frozen=True)
class Traces:
    """Each layer's trace and the total."""

    layers: list[Estimate]
    total: Estimate

    @property
    def reached(self) -> float:
        """Relative standard error of the total."""
        return relative(self.total)

    @property
    def layers_reached(self) -> float:
        """Relative standard error of the median layer."""
        return statistics.median(map(relative, self.layers))


def fresh(subject: Subject) -> Subject:
    """The same subject without what was computed on it before."""
    return dataclasses.replace(subject, shared=Shared())


def traces(subject: Subject, seed: int, rtol: float, layer_rtol: float = math.inf) -> Answer:
    """`hessian-trace` by the route that applies, until the total and every layer are known that well."""
    frame = gm.measure(fresh(subject), "hessian-trace", rtol=rtol, layer_rtol=layer_rtol, max_passes=MOST_PASSES,
                       seed=seed)
    total = frame["layer"] == "total"
    return Answer(Traces(_estimates(frame[~total]), _estimates(frame[total])[0]), frame["passes"].iloc[0])


def _estimates(frame: pd.DataFrame) -> list[Estimate]:
    return [Estimate(v, s, int(n)) for v, s, n in zip(frame["value"], frame["stderr"], frame["n"], strict=True)]


def forms(subject: Subject) -> Answer:
    """v_i' H_ii v_i along the displacement, [examples, layers], by the formulas that `hessian-distance` takes."""
    own = fresh(subject)
    risk, moves = own.risk, {layer.name: own.displacement(layer) for layer in own.layers}
    taps = find_taps(risk)
    linear = linear_layers(risk, taps)
    found = gauss_newton_forms(risk, moves, taps) if all(linear) else hessian_forms(risk, moves, taps)
    return Answer(found.double(), risk.passes)


def eigenvalues(subject: Subject, count: int, rtol: float, seed: int, most: int) -> Answer:
    """The `count` algebraically largest eigenvalues of `hessian-top`, in falling order."""
    frame = gm.measure(fresh(subject), "hessian-top", k=count, negative=0, rtol=rtol, max_products=most, seed=seed)
    rows = frame[(frame["layer"] == "total") & frame["term"].str.fullmatch(r"largest(-\d+)?")]
    return Answer(sorted(rows["value"], reverse=True), frame["passes"].iloc[0])


def noise_curve(subject: Subject, sigmas: Sequence[float], rtol: float, seed: int) -> Answer:
    """I(sigma) of `noise-stability`, an estimate for every sigma."""
    frame = gm.measure(fresh(subject), "noise-stability", sigmas=tuple(sigmas), rtol=rtol, max_passes=MOST_PASSES,
                       seed=seed)
    return Answer(_estimates(frame[frame["term"] == "stability"]), frame["passes"].iloc[0])


def audit(subject: Subject) -> Answer:
    """The readings of every measure of `AUDITED` and every bound with default parameters, on one subject.

    The passes are those that were really carried out: a reading charges again what it shares with another.
    """
    own = fresh(subject)
    done = spending(own)
    requests = [r for r in study.applicable(own, study.everything())
                if r.name in AUDITED or r.member.family == "bound"]
    readings = pd.concat([study.attempt(own, r) for r in requests], ignore_index=True)
    return Answer(readings, done())


def spending(subject: Subject) -> Callable[[], float]:
    """Start to count the forward-equivalents over the data that are really carried out; call the result to read."""
    risk, spent = subject.risk, []
    spend = risk.spend

    def counted(cost: float, examples: int) -> None:
        spent.append(cost * examples / risk.batches.size)
        spend(cost, examples)
    risk.spend = counted
    return lambda: math.fsum(spent)
