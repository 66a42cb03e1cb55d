"""Compression certificate in the manner of Lotfi et al. 2022: few bits for the difference from the start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from genmeasure.bounds.assumptions import distinct_examples, independent_start
from genmeasure.bounds.inversions import best_catoni, code_length, kl_inverse
from genmeasure.bounds.moved import Moved, choice_nats, errors, first_batches, moved
from genmeasure.bounds.terms import ZERO_ONE, check_delta, laid_out
from genmeasure.data.batches import Batch
from genmeasure.errors import unknown
from genmeasure.estimate import Estimate, Estimates
from genmeasure.registry import bound
from genmeasure.subject import Subject

STEPS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""Widths of a quantiser's levels that are tried, in units of the root mean square of what is quantised."""
RANKS = (0, 1, 2, 4, 8)
"""Ranks that are tried for matrices, 0: entry by entry."""
WIDTH_BITS = 16
"""Of the half-precision number that a quantiser's width is sent as."""


@dataclass(frozen=True)
class Coded:
    """Numbers rounded to multiples of a width, and the nats that say which."""

    value: Tensor
    nats: float


@dataclass(frozen=True)
class Compressed:
    """Entries of the state after compression, and the nats that say which, given the start."""

    state: dict[str, Tensor]
    nats: float


def quantised(numbers: Tensor, step: float) -> Coded:
    """Rounded to multiples of half(step rms); the width, the largest symbol and the symbols are sent."""
    width = float((step * numbers.square().mean().sqrt()).half())
    if width == 0:
        return Coded(torch.zeros_like(numbers), WIDTH_BITS * math.log(2))
    symbols = (numbers / width).round().long()
    largest = int(symbols.abs().max())
    nats = code_length((symbols + largest).flatten().tolist(), 2 * largest + 1)
    return Coded(symbols * width, nats + WIDTH_BITS * math.log(2) + universal_bits(largest) * math.log(2))


def universal_bits(number: int) -> int:
    """Of a whole number from 0 in Elias' gamma code."""
    return 2 * int(math.log2(number + 1)) + 1


Factors = tuple[Tensor, Tensor]
"""[out, k] and [k, rest]: their first r columns and rows make the best approximation of rank r."""


def best_factors(numbers: Tensor) -> Factors:
    """Factors of numbers [out, ...] up to the largest rank that is tried."""
    u, s, v = torch.linalg.svd(numbers.reshape(len(numbers), -1), full_matrices=False)
    root = s[:max(RANKS)].sqrt()
    return u[:, :len(root)] * root, root[:, None] * v[:len(root)]


def low_rank(factors: Factors, rank: int, step: float) -> Coded:
    """The product of the two quantised factors of the best approximation of this rank, [out, rest]."""
    left, right = quantised(factors[0][:, :rank], step), quantised(factors[1][:rank], step)
    return Coded(left.value @ right.value, left.nats + right.nats)


def compressed(subject: Subject, tensors: list[Moved], factors: Mapping[str, Factors], count: int, step: float,
               rank: int) -> Compressed:
    """Every tensor that moved, of its start plus the coded move; matrices that have more than `rank` by `low_rank`.

    factors: `best_factors` of the moves of matrices, by path. count: of all tensors.
    """
    state, nats = {}, choice_nats(count, [0] * len(tensors), 1) + math.log(len(STEPS) * len(RANKS))
    for m in tensors:
        narrow = m.move.ndim < 2 or rank == 0 or rank >= min(len(m.move), m.move[0].numel())
        coded = quantised(m.move, step) if narrow else low_rank(factors[m.path], rank, step)
        state[m.path] = m.value(m.start + coded.value.reshape(m.start.shape), subject.state[m.path])
        nats += coded.nats
    return Compressed(state, nats)


def best_compressed(subject: Subject, search_examples: int) -> tuple[Compressed, float, dict[str, float]]:
    """The compression whose bound is least by the errors on the first examples, its error on all, and its setting."""
    def compute() -> tuple[Compressed, float, dict[str, float]]:
        tensors, count = moved(subject)
        searched = first_batches(subject, search_examples)
        factors = {m.path: best_factors(m.move) for m in tensors if m.move.ndim > 1}
        best = (math.inf, None, {})
        for rank in (RANKS if factors else RANKS[:1]):
            for step in STEPS:
                found = compressed(subject, tensors, factors, count, step, rank)
                wrong = torch.cat([errors(subject, found.state, b) for b in searched]).mean().item()
                value = kl_inverse(wrong, found.nats / subject.train.size)
                if value < best[0] or best[1] is None:
                    best = (value, found, {"step": step, "rank": rank})
        _, found, setting = best

        def wrong_in(batch: Batch) -> Tensor:
            return errors(subject, found.state, batch).sum()
        return found, subject.engine.sum(wrong_in, subject.train).item() / subject.train.size, setting
    return subject.remember(f"compressed {search_examples}", compute)


@bound("lotfi2022", index=("term",), unit=ZERO_ONE, needs=("classes",),
       kind={"kl": "certificate", "catoni": "certificate"}, source="Lotfi et al. 2022, arXiv:2211.13609",
       assumes=(independent_start, distinct_examples))
def lotfi2022(subject: Subject, *, variant: str = "kl", delta: float = 0.05, search_examples: int = 256,
              start_saw_sample: bool = False) -> dict[str, Estimate]:
    """0-1 error of the network whose difference from the start is compressed to few bits; holds with 1 - delta.

    Every tensor that moved is rounded to multiples of a width of its own, or as the product of two such factors of low
    rank, and coded (Krichevsky-Trofimov); `bits` counts all of it, the choice among the settings that were tried
    included. It is a fixed network, of prior probability 2^-bits. variant `kl`: kl(training error || true error) <=
    (bits ln 2 + ln(1/delta)) / n (Occam's razor with Chernoff's bound). `catoni`: the published form, its temperature
    paid for. Terms: the training error of the compressed network and `complexity`. The start must have been chosen
    without these examples: say start_saw_sample=True where it was trained on them. search_examples: by whose errors
    the setting is chosen.
    """
    check_delta(delta)
    if variant not in ("kl", "catoni"):
        raise unknown("variant of lotfi2022", variant, ["kl", "catoni"])
    n = subject.train.size
    found, wrong, setting = best_compressed(subject, search_examples)
    if variant == "kl":
        total = kl_inverse(wrong, (found.nats - math.log(delta)) / n)
    else:
        total = min(1.0, best_catoni(wrong, found.nats, n, delta)[0])
    result = laid_out({"compressed-error": wrong, "complexity": total - wrong}, trivial=1.0, n=n, remarks={
        "bits": found.nats / math.log(2), "confidence-nats": -math.log(delta)})
    return Estimates(result, classifier="the start plus the compressed difference", prior="2^-bits, given the start",
                     **setting)
