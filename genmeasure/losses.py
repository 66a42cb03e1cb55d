"""Per-example losses, with the range that a bound may use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genmeasure.errors import unknown

IGNORED = -100
"""The label of a token that holds no prediction, as in torch and transformers."""


@dataclass(frozen=True)
class Loss:
    """A loss per example, and what is known of it.

    function: outputs [batch, ...], targets [batch, ...] -> losses [batch], twice differentiable in the outputs in
    reverse and in forward mode, and without shapes that depend on values, so that `torch.vmap` takes it.
    upper: the least upper bound of the loss, or None when it is unbounded; the lower bound is 0.
    classification: targets [batch] are one class index per example, outputs [batch, classes].
    predictions: targets -> [batch], the predictions that an example's loss is a sum over (the tokens of a sequence);
    None: one each. `Risk` divides by their mean number.
    softmax_rows: (outputs, targets) -> logits [batch, rows, classes] and mask [batch, rows], for a loss that is the sum
    of softmax cross-entropies over the rows in the mask; None for any other. Differentiable in the outputs.
    errors: (outputs, targets) -> [batch], wrong predictions of each example (for `predictions` None: the fraction of
    them); None where nothing counts as wrong.
    """

    name: str
    function: Callable[[Tensor, Tensor], Tensor]
    upper: float | None = None
    classification: bool = True
    predictions: Callable[[Tensor], Tensor] | None = None
    softmax_rows: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    errors: Callable[[Tensor, Tensor], Tensor] | None = None

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.function(outputs, targets)


SMALLEST_PROBABILITY = 1e-4
"""p_min of the clamped cross-entropy (Perez-Ortiz et al. 2021, arXiv:2007.12911)."""


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def clamped_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """-ln max(p, p_min) / ln(1/p_min), in [0, 1] (Perez-Ortiz et al. 2021, arXiv:2007.12911)."""
    floor = torch.as_tensor(SMALLEST_PROBABILITY, dtype=outputs.dtype, device=outputs.device).log()
    return torch.minimum(cross_entropy(outputs, targets), -floor) / -floor


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared distance, summed over the outputs of an example."""
    return 0.5 * (outputs - targets.reshape(outputs.shape).to(outputs)).flatten(1).square().sum(1)


def zero_one(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(-1) != targets).to(outputs.dtype)


def single_row(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [batch, classes] as one row of logits per example."""
    return outputs[:, None], torch.ones_like(targets, dtype=torch.bool)[:, None]


def token_rows(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [batch, tokens, classes]; tokens labelled `IGNORED` are outside the mask."""
    return outputs, targets != IGNORED


def token_predictions(targets: Tensor) -> Tensor:
    """The number of labelled tokens of each example, targets [batch, tokens]."""
    return (targets != IGNORED).sum(1)


def token_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs [batch, tokens, classes], targets [batch, tokens]; the sum over the labelled tokens of an example."""
    labelled = targets != IGNORED
    chosen = outputs.log_softmax(-1).gather(-1, torch.where(labelled, targets, 0)[..., None]).squeeze(-1)
    return -torch.where(labelled, chosen, 0.0).sum(1)


def token_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs.argmax(-1) != targets) & (targets != IGNORED)).sum(1).to(outputs.dtype)


def shifted(function: Callable[[Tensor, Tensor], Any], outputs: Tensor, targets: Tensor) -> Any:
    """`function` of what every token says about the next one, as transformers shifts the labels of a causal model."""
    return function(outputs[:, :-1], targets[:, 1:])


def next_token_predictions(targets: Tensor) -> Tensor:
    return token_predictions(targets[:, 1:])


def next_token_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs [batch, tokens, vocabulary], targets [batch, tokens] as the inputs; the sum over tokens but the first."""
    return shifted(token_cross_entropy, outputs, targets)


def next_token_rows(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return shifted(token_rows, outputs, targets)


def next_token_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    return shifted(token_errors, outputs, targets)


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs [batch, labels] as logits, targets of the same shape in [0, 1]; the sum over the labels of an example."""
    targets, zero = targets.reshape(outputs.shape).to(outputs), torch.zeros_like(outputs)
    # F.binary_cross_entropy_with_logits and F.logsigmoid fail or warn in nested modes of torch 2.13
    each = targets * torch.logaddexp(zero, -outputs) + (1 - targets) * torch.logaddexp(zero, outputs)
    return each.flatten(1).sum(1)


def binary_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    """The fraction of an example's labels on the wrong side of 1/2."""
    wrong = (outputs > 0) != (targets.reshape(outputs.shape) > 0.5)
    return wrong.to(outputs.dtype).flatten(1).mean(1)


LOSSES = {loss.name: loss for loss in (
    Loss("cross-entropy", cross_entropy, softmax_rows=single_row, errors=zero_one),
    Loss("clamped-cross-entropy", clamped_cross_entropy, upper=1.0, errors=zero_one),
    Loss("token-cross-entropy", token_cross_entropy, classification=False, predictions=token_predictions,
         softmax_rows=token_rows, errors=token_errors),
    Loss("next-token-cross-entropy", next_token_cross_entropy, classification=False, predictions=next_token_predictions,
         softmax_rows=next_token_rows, errors=next_token_errors),
    Loss("binary-cross-entropy", binary_cross_entropy, classification=False, errors=binary_errors),
    Loss("squared", squared, classification=False),
)}


def get_loss(loss: str | Loss) -> Loss:
    """A loss by its registered name; a `Loss` is passed through."""
    if isinstance(loss, Loss):
        return loss
    if loss not in LOSSES:
        raise unknown("loss", loss, LOSSES)
    return LOSSES[loss]
