"""The majority vote of weak sources of labels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genmeasure.data.label_noise.arrays import array
from genmeasure.data.label_noise.class_conditional import sampled
from genmeasure.data.label_noise.labels import NoisyLabels, checked, rows_of_probabilities
from genmeasure.errors import InputError
from genmeasure.registry import label_noise

ABSTAINED = -1


@label_noise("majority-vote", source="Mazzetto et al. 2021 (weak sources); Ju, Li, Zhang 2022, arXiv:2206.02659")
def majority_vote(y: Any, classes: int, *, votes: Any, seed: int = 0) -> NoisyLabels:
    """Replace every label by the class that most weak sources vote for.

    y: [n] class indices. votes: [n, sources] class indices, -1 where a source abstains, or a file of them (.npy, .csv).
    A tie is drawn among the classes that share the most votes; where every source abstains, among all classes.
    `confusion` is the expectation over these draws, given the votes. Raises `InputError` for votes that do not fit.
    """
    clean, device = checked(y, classes)
    votes = torch.as_tensor(array(votes)).cpu()
    if votes.dim() != 2 or len(votes) != len(clean) or votes.is_floating_point() or votes.numel() == 0:
        raise InputError(f"votes of shape {list(votes.shape)} and type {votes.dtype} came for {len(clean)} labels; "
                         "give one row of integer classes for each label, one column for each source")
    if votes.min() < ABSTAINED or votes.max() >= classes:
        raise InputError(f"votes from {votes.min()} to {votes.max()} came with {classes} classes; a vote must lie "
                         f"between 0 and classes - 1, or be {ABSTAINED} where a source abstains")
    probabilities = winners(votes.to(torch.int64), classes)
    labels = sampled(probabilities, torch.Generator().manual_seed(seed))
    confusion = rows_of_probabilities(F.one_hot(clean, classes).double().T @ probabilities)
    return NoisyLabels.of(labels.to(device), clean.to(device), confusion, classes=classes)


def winners(votes: Tensor, classes: int) -> Tensor:
    """Votes [n, sources] -> [n, k] float64, probabilities that are equal over the classes with the most votes."""
    counts = F.one_hot(votes - ABSTAINED, classes + 1)[..., 1:].sum(1)
    most = (counts == counts.amax(1, keepdim=True)).double()
    return most / most.sum(1, keepdim=True)
