"""What an auxiliary model says of examples, for correlated label noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genmeasure.data.batches import Batches
from genmeasure.training.evaluate import predict


def auxiliary_scores(model: nn.Module, batches: Batches) -> Tensor:
    """Scores [n, classes] on the CPU for the examples in their order, which label noise of kind "correlated" takes.

    The model runs in evaluation mode and without gradients, on the inputs as they come: `batches` should hold clean,
    not augmented ones. Its modes are afterwards as before.
    """
    return torch.cat([predict(model, batch, len(batch)).cpu() for batch in batches])
