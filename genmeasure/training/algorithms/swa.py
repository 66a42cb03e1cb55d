"""Stochastic weight averaging."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.averages.stochastic import StochasticWeightAveraging


@algorithm("swa", source="Izmailov et al. 2018, arXiv:1803.05407, Algorithm 1")
def swa(*, begin: int | None = None, learning_rate: float | None = None) -> Algorithm:
    """Plain fine-tuning whose result is the mean of the weights after each of the later epochs.

    begin: number of the first epoch that counts, from 1; None begins when two thirds of the epochs are over.
    learning_rate: from that epoch on; None keeps the schedule's. Running statistics of BatchNorm are computed anew.
    """
    return Algorithm(average=StochasticWeightAveraging(begin, learning_rate))
