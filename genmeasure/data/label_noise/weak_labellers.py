"""Weak sources of labels for images, each of which sees a small window."""

from __future__ import annotations

import torch
from torch import Tensor

from genmeasure.data.label_noise.labels import checked
from genmeasure.data.label_noise.majority_vote import ABSTAINED
from genmeasure.errors import InputError


def weak_labels(images: Tensor, y: Tensor, classes: int, *, sources: int = 5, window: int = 4, known: int = 10,
                abstaining: float = 0.2, seed: int = 0) -> Tensor:
    """Votes [n, sources] for `majority_vote`, -1 where a source abstains.

    images: [n, channels, height, width]. Each source sees one square of `window` pixels at a random place and votes for
    the class whose mean over `known` random examples is nearest there; it abstains on the fraction `abstaining` of the
    images for which the two nearest means lie closest together. Raises `InputError` for a window larger than the
    images, and when a class has no example.
    """
    labels, _ = checked(y, classes)
    height, width = images.shape[-2:]
    if images.dim() != 4 or not 1 <= window <= min(height, width):
        raise InputError(f"a window of {window} pixels came for images of shape {list(images.shape)}; it must fit into "
                         "images [n, channels, height, width]")
    if not 0 <= abstaining < 1:
        raise InputError(f"abstaining={abstaining} came; give a fraction from 0 to below 1")
    if len(labels.unique()) < classes:
        raise InputError(f"labels of {len(labels.unique())} of {classes} classes came; each class needs an example")
    generator = torch.Generator().manual_seed(seed)
    votes = []
    for _ in range(sources):
        top, left = (int(torch.randint(size - window + 1, (), generator=generator)) for size in (height, width))
        seen = images[..., top:top + window, left:left + window].flatten(1).double().cpu()
        means = torch.stack([seen[_some(labels, label, known, generator)].mean(0) for label in range(classes)])
        nearest = torch.cdist(seen, means).topk(2, largest=False)
        margin = nearest.values[:, 1] - nearest.values[:, 0]
        silent = margin.argsort()[:int(abstaining * len(seen))]
        votes.append(nearest.indices[:, 0].index_fill(0, silent, ABSTAINED))
    return torch.stack(votes, 1)


def _some(labels: Tensor, label: int, known: int, generator: torch.Generator) -> Tensor:
    rows = (labels == label).nonzero().squeeze(1)
    return rows[torch.randperm(len(rows), generator=generator)[:known]]
