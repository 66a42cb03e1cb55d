"""Plain fine-tuning that ends when the validation figure no longer falls."""

from __future__ import annotations

from genmeasure.registry import algorithm
from genmeasure.training.algorithm import Algorithm
from genmeasure.training.selection import BestValidation


@algorithm("early-stopping", source="Ju, Li, Zhang 2022, arXiv:2206.02659 (baseline)")
def early_stopping(*, patience: int = 10, by: str = "loss") -> Algorithm:
    """Plain fine-tuning up to the epoch with the best validation figure.

    patience: epochs without a new best after which training ends. by: "loss" or "error". Needs validation data.
    """
    return Algorithm(selection=BestValidation(by, patience))
