"""Labels that people gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from genmeasure.data import manifest
from genmeasure.data.label_noise.arrays import array, arrays
from genmeasure.data.label_noise.labels import NoisyLabels, checked, counted_confusion
from genmeasure.errors import InputError, unknown
from genmeasure.registry import label_noise

CLEAN = "clean_label"


@label_noise("human", source="Wei et al. 2022, arXiv:2110.12088 (CIFAR-N)")
def human(y: Any, classes: int, *, file: str = "cifar10n_labels", kind: str = "worse_label",
          index: Any = None) -> NoisyLabels:
    """Replace every label by one that a person gave, from a published file.

    y: [n] class indices. file: an .npz, or a name of the manifest, with `clean_label` [m] and `kind` [m]; CIFAR-10N has
    the kinds aggre_label, random_label1 to random_label3 and worse_label. index: [n], row of each example in the
    file, or a file of them (.npy, .csv); by default the first is the first, and n must be m. `confusion` is counted
    over the whole file, of which the examples are a part. Nothing in the file is run. Raises `InputError` where the
    file's clean labels are others than y.
    """
    clean, device = checked(y, classes)
    published = arrays(Path(file) if Path(file).suffix else manifest.path(file))
    for name in (CLEAN, kind):
        if name not in published:
            raise unknown(f"kind of labels in {file}", name, published)
    truth, given = (checked(published[name].astype("int64"), classes)[0] for name in (CLEAN, kind))
    rows = torch.arange(len(truth)) if index is None else torch.as_tensor(array(index)).cpu().to(torch.int64)
    if rows.shape != clean.shape or rows.min() < 0 or rows.max() >= len(truth):
        raise InputError(f"{len(clean)} labels came for {list(rows.shape)} rows of a file with {len(truth)}; give "
                         "index=…, one row of the file for each label")
    if not torch.equal(truth[rows], clean):
        raise InputError(f"{int((truth[rows] != clean).sum())} of {len(clean)} labels differ from the clean ones in "
                         f"{file}; give the rows of the file in which the examples stand as index=…")
    return NoisyLabels.of(given[rows].to(device), clean.to(device), counted_confusion(given, truth, classes),
                          classes=classes)
