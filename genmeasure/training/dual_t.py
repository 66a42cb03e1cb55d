"""The confusion matrix of label noise, estimated from a model that was trained on the noisy labels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from genmeasure.data.label_noise.labels import rows_of_probabilities
from genmeasure.errors import InputError

OUTLIERS = 0.97
"""Examples from this quantile of a class's probability on are left out when its anchor is looked for."""


def dual_t(probabilities: Tensor, labels: Tensor, quantile: float = OUTLIERS) -> Tensor:
    """P(given label | true label), [k, k] float64 on the CPU (Yao et al. 2020, arXiv:2006.07805: the dual-T estimator).

    probabilities: [n, k], what the model says of the training examples, in evaluation mode. labels: [n], as given.
    The product of two matrices with the predicted class between them: P(predicted | true), which is the row of
    probabilities at an anchor of each class (the example that the class is most probable for, those from the quantile
    on left out as outliers), and P(given | predicted), counted. A class that is never predicted has no counts and
    contributes nothing; rows are normalised again. The recipe suits a model that is sure: one whose probabilities are
    still those of the noisy labels makes both factors noisy, and the product has the noise twice. Raises `InputError`
    for probabilities that do not fit the labels, and when a row is left with nothing.
    """
    probabilities, labels = probabilities.detach().double().cpu(), labels.cpu()
    if probabilities.dim() != 2 or len(probabilities) != len(labels):
        raise InputError(f"probabilities of shape {list(probabilities.shape)} came for {len(labels)} labels; give one "
                         "row for each label and one column for each class")
    classes = probabilities.shape[1]
    counts = F.one_hot(probabilities.argmax(1), classes).double().T @ F.one_hot(labels, classes).double()
    given = counts / counts.sum(1, keepdim=True).clamp(min=1)
    matrix = probabilities[anchors(probabilities, quantile)] @ given
    if not bool((matrix.sum(1) > 0).all()):
        raise InputError("the estimated confusion matrix has a row of zeros: an anchor's probabilities lie wholly on "
                         "classes that are never predicted; train the reference longer, or give the confusion matrix")
    return rows_of_probabilities(matrix)


def anchors(probabilities: Tensor, quantile: float = OUTLIERS) -> Tensor:
    """The row [k] of each class's anchor: the most probable example below the quantile.

    At most half of the examples that are predicted to be of a class are left out: with more than some 33 classes the
    published quantile would leave out all of them. Equal probabilities, as those of a model that is certain, are taken
    by their place in the data, where the published comparison of values would leave out all of them at once.
    """
    examples, classes = probabilities.shape
    outliers = examples - math.ceil(quantile * (examples - 1))
    predicted = torch.bincount(probabilities.argmax(1), minlength=classes)
    place = examples - 1 - torch.minimum(predicted // 2, torch.tensor(outliers))
    return probabilities.sort(dim=0, stable=True).indices.gather(0, place.clamp(min=0)[None])[0]
