"""Regularized self-labeling."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.constraints.layer_balls import LayerBalls
from genmeasure.training.losses.self_labeling import SelfLabeling


@algorithm("self-labeling", source="Li, Zhang 2021, arXiv:2111.04578")
def self_labeling(*, threshold: float = 0.9, correct_from: int = 10, reweight_from: int = 5, temperature: float = 2.0,
                  correction: bool = True, reweighting: bool = True, normalization: str = "batch",
                  averaging: float = 0.0, limit: float = 1.0, radius: float | None = 8.0, growth: float = 1.0,
                  head_radius: float | None = 14.0,
                  groups: str = "layers") -> Algorithm:
    """Corrects labels and weights examples by the model's own predictions, with every layer in a ball around its start.

    The loss's parameters are those of `SelfLabeling`, the constraint's those of `LayerBalls`; radius=None leaves the
    constraint out, correction=False or reweighting=False one half of the loss. The radii are about those published for
    a ResNet-18 under label noise; choose them for your model, by the distances of a plain run.
    """
    loss = SelfLabeling(threshold, correct_from, reweight_from, temperature, correction, reweighting, normalization,
                        averaging, limit)
    constraint = None if radius is None else LayerBalls(radius, growth, head_radius, groups=groups)
    return Algorithm(loss=loss, constraint=constraint)
