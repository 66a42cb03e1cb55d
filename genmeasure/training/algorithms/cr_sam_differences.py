"""Curvature-regularised sharpness-aware minimisation, as in the public code."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.probes.curvature_differences import CurvatureDifferences


@algorithm("cr-sam-differences", source="public code of Wu, Luo, Wunsch 2024, arXiv:2312.13555")
def cr_sam_differences(*, rho: float = 0.1, gamma: float = 0.1, beta: float = 0.01) -> Algorithm:
    """SAM plus gamma times the second and beta times the first difference of the loss along the step uphill.

    rho: length of the step, in units of weight. The paper's form, with logarithms, is "cr-sam".
    """
    return Algorithm(probe=CurvatureDifferences(rho, gamma, beta))
