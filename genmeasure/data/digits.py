"""The handwritten digits that scikit-learn carries: a data set that needs no download."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genmeasure.errors import InputError

SPLITS = {"train": 0.0, "validation": 0.5, "test": 0.67}
"""Where each split begins, as a fraction of a class."""


def digits(classes: Sequence[int] = (5, 6, 7, 8, 9), seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """The splits `train` (half), `validation` (0.17) and `test` (0.33), each class divided alike, fixed by `seed`.

    Each split holds `x` [n, 1, 8, 8] float32 in [0, 1] (pixels / 16), `y` [n] int64, relabelled 0..k-1 in the order
    of `classes`, and `index` [n] int64, the row in scikit-learn's data set. The 1797 images are all different, but
    the 13 people who wrote them occur in every split. Raises `InputError` for classes that do not exist.
    """
    from sklearn.datasets import load_digits

    classes = [classes] if isinstance(classes, int) else list(classes)
    if len(classes) < 2 or len(set(classes)) < len(classes) or not set(classes) <= set(range(10)):
        raise InputError(f"the classes {classes} came; give at least two different digits from 0 to 9")
    images, digit = load_digits(return_X_y=True)
    x = torch.from_numpy(images).to(torch.float32).reshape(-1, 1, 8, 8) / 16
    digit = torch.from_numpy(digit).to(torch.int64)
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, list[Tensor]] = {split: [] for split in SPLITS}
    for wanted in classes:
        rows = (digit == wanted).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        starts = [round(start * len(rows)) for start in SPLITS.values()]
        for split, begin, end in zip(SPLITS, starts, [*starts[1:], len(rows)], strict=True):
            parts[split].append(rows[begin:end])
    label = torch.tensor([classes.index(d) if d in classes else -1 for d in range(10)])
    result = {}
    for split, rows in parts.items():
        index = torch.cat(rows)
        index = index[torch.randperm(len(index), generator=generator)]  # so that each batch holds every class
        result[split] = {"x": x[index], "y": label[digit[index]], "index": index}
    return result
