"""Traces of the diagonal blocks of S H S, with a diagonal S that gives every weight a scale of its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from genmeasure.curvature.draws import batch_generator, rademacher
from genmeasure.curvature.trace import hutchinson
from genmeasure.data.batches import Batch
from genmeasure.engine import progress
from genmeasure.estimate import StratifiedMean, until_precise
from genmeasure.risk import Risk


def scaled_traces(risk: Risk, scales: Mapping[str, Tensor], *, rtol: float, max_passes: int,
                  seed: int) -> StratifiedMean:
    """sum over the weights of a layer of scale^2 times the second derivative, a mean over [layers].

    Random signs times the scales, fresh for every batch; ends when the sum over layers has a relative standard error
    of `rtol`, or after `max_passes`.
    """
    risk.twice_differentiable  # noqa: B018 - raises where it is not

    def draw(number: int) -> Tensor:
        def one(batch: Batch) -> Tensor:
            draws = batch_generator("scaled trace", seed, number, batch)
            return hutchinson(risk, batch, {k: rademacher(tuple(s.shape), draws).to(s) * s for k, s in scales.items()})
        return risk.engine.batch_sums(one, risk.batches)
    return until_precise(draw, risk.batches.size, rtol=rtol, watch=torch.ones(1, len(risk.layers)),
                         numbers=progress(range(max(2, max_passes)), "trace", max_passes))
