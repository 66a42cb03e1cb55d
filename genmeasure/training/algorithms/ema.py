"""Exponential moving average of the weights."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.averages.exponential import ExponentialMovingAverage


@algorithm("ema", source="Tarvainen, Valpola 2017, arXiv:1703.01780, section 2")
def ema(*, decay: float = 0.999, bias_correction: bool = True) -> Algorithm:
    """Plain fine-tuning whose result is the mean of the weights after all steps, weighted by decay^(steps ago).

    decay: from 0 up to but not 1. bias_correction: whether the weights add up to 1 from the first step on; otherwise
    the weights after the first step keep the share decay^(steps). Running statistics of BatchNorm are computed anew.
    """
    return Algorithm(average=ExponentialMovingAverage(decay, bias_correction))
