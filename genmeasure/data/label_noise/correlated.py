"""The labels that an auxiliary model gives."""

from __future__ import annotations

from typing import Any

import torch

from genmeasure.data.label_noise.arrays import array
from genmeasure.data.label_noise.labels import NoisyLabels, checked
from genmeasure.errors import InputError
from genmeasure.registry import label_noise


@label_noise("correlated", source="Li, Zhang 2021, arXiv:2111.04578")
def correlated(y: Any, classes: int, *, predictions: Any) -> NoisyLabels:
    """Replace every label by the prediction of an auxiliary model, so that errors depend on the example.

    y: [n] class indices. predictions: classes [n] or scores [n, k], whose largest counts, or a file of either (.npy,
    .csv); `genmeasure.training.auxiliary.auxiliary_scores` gets them from a model. Nothing is drawn, so `confusion` is
    what came out. Raises `InputError` for predictions of another shape.
    """
    clean, device = checked(y, classes)
    predictions = torch.as_tensor(array(predictions)).detach().cpu()
    if predictions.shape == (len(clean), classes):
        predictions = predictions.argmax(1)
    if predictions.shape != clean.shape:
        raise InputError(f"predictions of shape {list(predictions.shape)} came for {len(clean)} labels of {classes} "
                         f"classes; give {[len(clean)]} classes or {[len(clean), classes]} scores")
    labels, _ = checked(predictions, classes)
    return NoisyLabels.of(labels.to(device), clean.to(device), classes=classes)
