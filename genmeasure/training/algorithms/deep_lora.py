"""Deep low-rank adaptation."""

from __future__ import annotations

from collections.abc import Sequence

from genmeasure.registry import algorithm
from genmeasure.training.adapters.deep_product import DeepProduct
from genmeasure.training.algorithm import Algorithm


@algorithm("deep-lora", source="Yaras et al. 2024, arXiv:2406.04112")
def deep_lora(*, depth: int = 3, width: int = 8, epsilon: float = 1e-3,
              layers: str | Sequence[str] = "*") -> Algorithm:
    """Trains W + W_L … W_2 W_1 through its factors, and the head in full; merged into plain weights afterwards.

    depth: L. width: of the inner factors; 0 takes the larger side of the weight. epsilon: every factor starts
    orthogonal times epsilon; the product at the start is taken off, so that the outputs do not jump. layers: pattern or
    patterns of the layers that get factors, as in `lora`.
    """
    return Algorithm(adapter=DeepProduct(depth, width or None, epsilon, layers))
