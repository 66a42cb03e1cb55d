"""Gonon et al. 2024: generalization bound by the path norm, for ReLU networks with any skips and pooling."""

from __future__ import annotations

import math

from torch import nn

from genmeasure.bounds.gouk2021 import largest_entry
from genmeasure.bounds.terms import ZERO_ONE, exponential, laid_out, log_sum, logarithm, percentile_margin
from genmeasure.errors import unknown
from genmeasure.estimate import Estimate
from genmeasure.path_norm import log_path_norm
from genmeasure.registry import bound
from genmeasure.subject import Subject
from genmeasure.symbolic import definable

POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


def log_theorem(log_norm: float, reach: float, n: int, depth: int, inputs: int, outputs: int, pools: int = 0,
                pool_size: int = 1) -> float:
    """ln( 4B/sqrt(n) sqrt(D ln((3 + 2P) K) + ln((3 + 2P)/(1 + P) (d_in + 1) d_out)) |Phi|_1 ).

    P: kinds of pooling, K: the largest pooling window.
    """
    kinds = 3 + 2 * pools
    inside = depth * math.log(kinds * pool_size) + math.log(kinds / (1 + pools) * (inputs + 1) * outputs)
    return math.log(4 * reach) - 0.5 * math.log(n) + 0.5 * math.log(inside) + log_norm


def log_sharpened(log_norm: float, reach: float, n: int, depth: int, inputs: int, outputs: int,
                  pool_size: int = 1) -> float:
    """ln( 4B/sqrt(n) sqrt(D ln 3 + ln K + ln((d_in + 1) d_out)) |Phi|_1 )."""
    inside = depth * math.log(3) + math.log(pool_size) + math.log((inputs + 1) * outputs)
    return math.log(4 * reach) - 0.5 * math.log(n) + 0.5 * math.log(inside) + log_norm


def window(pool: nn.Module) -> int:
    """The number of positions that a pooling module takes the largest of."""
    axes = POOLS.index(type(pool)) + 1
    return math.prod(pool.kernel_size) if isinstance(pool.kernel_size, tuple) else pool.kernel_size**axes


def rectified(subject: Subject) -> str | None:
    return definable(subject, log_path_norm, "the path norm")


@bound("gonon2024", index=("term",), unit=ZERO_ONE, needs=("classes", "input-norm"), defined=rectified,
       kind={"theorem": "measure", "sharpened": "measure"}, source="arXiv:2310.01225, Theorem 1; bounds.md 3.10")
def gonon2024(subject: Subject, *, variant: str = "sharpened", percentile: float = 0.1) -> dict[str, Estimate]:
    """Margin loss plus 4 B / (margin sqrt n) times a logarithmic factor times the L1 path norm.

    The path norm sums the sizes of the products of weights along every path, skips and pooling included, and does not
    change when scale moves between layers. B is the largest entry of a training input, at least 1. variant `theorem`:
    factor sqrt(D ln((3 + 2P) K) + ln((3 + 2P)/(1 + P) (d_in + 1) d_out)); `sharpened`: sqrt(D ln 3 + ln K + ln((d_in +
    1) d_out)). D counts layers, P is 1 with max-pooling (0 without) and K the largest window of it. A measure: the
    margin at `percentile` of the training margins and B are not paid for; infinite where that margin is not positive.
    """
    gamma, error = percentile_margin(subject, percentile)
    n, first = subject.train.size, next(iter(subject.train)).input_tensors()[0]
    sizes = [window(m) for m in subject.model.modules() if isinstance(m, POOLS)]
    largest = max(sizes, default=1)
    shape = (max(1.0, largest_entry(subject)), n, len(subject.layers), first[0].numel(), subject.classes)
    if variant == "theorem":
        log_paid = log_theorem(log_path_norm(subject), *shape, pools=min(1, len(sizes)), pool_size=largest)
    elif variant == "sharpened":
        log_paid = log_sharpened(log_path_norm(subject), *shape, pool_size=largest)
    else:
        raise unknown("variant of gonon2024", variant, ["theorem", "sharpened"])
    log_paid = log_paid - math.log(gamma) if gamma > 0 else math.inf
    return laid_out({"margin-loss": error, "complexity": exponential(log_paid)}, trivial=1.0, n=n,
                    remarks={"margin": gamma, "margin-error": error}, log_total=log_sum([logarithm(error), log_paid]))
