"""Curvature-regularised sharpness-aware minimisation, as in the paper."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.probes.log_curvature import LogCurvature


@algorithm("cr-sam", source="Wu, Luo, Wunsch 2024, arXiv:2312.13555")
def cr_sam(*, rho: float = 0.1, alpha: float = 0.01, beta: float = 0.01) -> Algorithm:
    """SAM plus alpha log(trace) + beta log(gradient norm), both from differences of the loss along the step uphill.

    rho: length of the step, in units of weight. alpha, beta: in nats. The public code's form is "cr-sam-differences".
    """
    return Algorithm(probe=LogCurvature(rho, alpha, beta))
