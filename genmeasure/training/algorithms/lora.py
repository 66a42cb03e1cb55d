"""Low-rank adaptation."""

from __future__ import annotations

from collections.abc import Sequence

from genmeasure.registry import algorithm
from genmeasure.training.adapters.low_rank import LowRank
from genmeasure.training.algorithm import Algorithm


@algorithm("lora", source="Hu et al. 2022, arXiv:2106.09685, section 4.1")
def lora(*, rank: int = 8, alpha: float = 8.0, layers: str | Sequence[str] = "*") -> Algorithm:
    """Trains W + (alpha/rank) B A through its factors, and the head in full; merged into plain weights afterwards.

    rank: columns of B and rows of A. layers: pattern or patterns, such as "layer4.*" or "*.query,*.value", of the
    linear, convolutional and attention layers that get factors; everything else outside of the head is frozen.
    """
    return Algorithm(adapter=LowRank(rank, alpha, layers))
