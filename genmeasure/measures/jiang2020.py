"""The complexity measures of Jiang et al. 2020 that are functions of norms, the margin and the path norm."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from genmeasure.errors import InputError
from genmeasure.estimate import Estimate
from genmeasure.norms import frobenius, spectral
from genmeasure.path_norm import log_path_norm
from genmeasure.predictions import predictions
from genmeasure.registry import measure
from genmeasure.subject import Subject
from genmeasure.symbolic import NoRule

PERCENTILE = 0.1


@dataclass(frozen=True)
class Facts:
    """Squared norms by layer: spectral and Frobenius of the weights, of the distances; margin; counts.

    margin: at `PERCENTILE` of the training margins. path: ln of the squared path norm, None where it has no expression.
    """

    spectral: list[float]
    frobenius: list[float]
    distance: list[float]
    spectral_distance: list[float]
    parameters: int
    margin: float
    n: int
    path: float | None = None


def logarithmic(f: Facts) -> dict[str, float]:
    """The measures mu whose value is (mu - ln n) / 2."""
    d = len(f.spectral)
    spec, fro = (sum(map(_log, norms)) for norms in (f.spectral, f.frobenius))
    found = {"log-prod-of-spec": spec, "log-sum-of-spec": math.log(d) + spec / d, "log-prod-of-fro": fro,
             "log-sum-of-fro": math.log(d) + fro / d}
    if f.margin > 0:
        over = spec - 2 * math.log(f.margin)
        ratios = {name: math.fsum(x / s for x, s in zip(norms, f.spectral, strict=True) if s > 0)
                  for name, norms in (("init", f.distance), ("orig", f.frobenius))}
        found |= {"log-prod-of-spec-over-margin": over, "log-prod-of-fro-over-margin": fro - 2 * math.log(f.margin),
                  "log-sum-of-spec-over-margin": math.log(d) + over / d,
                  "log-sum-of-fro-over-margin": math.log(d) + (fro - 2 * math.log(f.margin)) / d,
                  **{f"log-spec-{name}-main": over + _log(ratio) for name, ratio in ratios.items()}}
    return found


def rooted(f: Facts) -> dict[str, float]:
    """ln of the measures mu whose value is sqrt(mu / n)."""
    found = {"params": float(f.parameters), "fro-dist": sum(f.distance), "dist-spec-init": sum(f.spectral_distance),
             "param-norm": sum(f.frobenius),
             "fro-over-spec": math.fsum(x / s for x, s in zip(f.frobenius, f.spectral, strict=True) if s > 0)}
    found = {name: _log(mu) for name, mu in found.items()}
    if f.path is not None:
        found["path-norm"] = f.path
    if f.margin > 0:
        found["inverse-margin"] = -2 * math.log(f.margin)
        if f.path is not None:
            found["path-norm-over-margin"] = f.path - 2 * math.log(f.margin)
    return found


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


@measure("jiang2020", index=("term",), needs=("classes",), source="Jiang et al. 2020, arXiv:1912.02178; bounds.md 4")
def jiang2020(subject: Subject) -> dict[str, Estimate]:
    """Complexity measures of the list of Jiang et al. that need no drawing; those that do are `pacbayes-sharpness`.

    Terms have the names of that list. Those of products and sums of norms are (mu - ln n)/2, all others sqrt(mu/n), for
    large ones as `log10-…`. Norms are squared, of the layers' weights with BatchNorm folded (the start's with its own
    statistics), kernels reshaped. `-over-margin` and `-main` divide by the squared margin at the 10th percentile, and
    are left out where that is not positive; a term that is the logarithm of zero is left out, too.
    """
    found = predictions(subject)
    if found.margin is None:
        raise InputError(f"the loss {subject.loss.name!r} has no classes; margins need a classification loss")
    weights = [x.matrix(subject.weight(x, fold=True)) for x in subject.layers]
    moves = [x.matrix(subject.displacement(x, fold=True)) for x in subject.layers]
    try:
        path = log_path_norm(subject, 2.0)
    except (NoRule, InputError):
        path = None
    facts = Facts([spectral(w) ** 2 for w in weights], [frobenius(w) ** 2 for w in weights],
                  [frobenius(v) ** 2 for v in moves], [spectral(v) ** 2 for v in moves],
                  sum(w.numel() for w in weights), torch.quantile(found.margin, PERCENTILE).item(),
                  subject.train.size, path)
    result = {name: (mu - math.log(facts.n)) / 2 for name, mu in logarithmic(facts).items()}
    for name, log in rooted(facts).items():
        half = (log - math.log(facts.n)) / 2
        result |= {name: math.exp(half)} if half < 700 else {f"log10-{name}": half / math.log(10)}
    return {name: Estimate(value, 0.0, facts.n) for name, value in result.items() if math.isfinite(value)}
