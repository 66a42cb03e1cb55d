"""Fine-tuning with the generalized Jensen-Shannon divergence."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.losses.generalized_jensen_shannon import GeneralizedJensenShannon


@algorithm("generalized-jensen-shannon", source="Englesson, Azizpour 2021, arXiv:2105.04522")
def generalized_jensen_shannon(*, label_weight: float = 0.5, views: int = 1, sigma: float = 0.0) -> Algorithm:
    """Minimises the Jensen-Shannon divergence of label and predictions (JS for one view of an input, else GJS).

    label_weight: pi_1, above 0 (cross-entropy) and below 1 (absolute error). views: of each input, with Gaussian noise
    of standard deviation sigma, in units of the inputs.
    """
    return Algorithm(loss=GeneralizedJensenShannon(label_weight, views, sigma))
