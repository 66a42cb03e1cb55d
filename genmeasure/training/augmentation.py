"""Augmentations of images by name: what is drawn anew for every image in every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from genmeasure.data.batches import Batch, map_tensors
from genmeasure.errors import InputError

SHARE = 8
"""Images are moved by at most this part of their sides, or by one pixel: 4 of 32, as is usual for CIFAR-10."""


def crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Moved by whole pixels in both directions; what comes in at the sides is zero (the mean, of normalised images)."""
    b, _, *sides = images.shape
    by = [max(1, side // SHARE) for side in sides]
    padded = F.pad(images, [pad for pad in reversed(by) for _ in range(2)])
    rows, columns = ((torch.randint(0, 2 * pad + 1, (b, 1), generator=generator) + torch.arange(side)).to(images.device)
                     for pad, side in zip(by, sides, strict=True))
    examples = torch.arange(b, device=images.device)[:, None, None]
    return padded[examples, :, rows[:, :, None], columns[:, None, :]].movedim(3, 1).contiguous()


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image with left and right exchanged, with probability one half."""
    turned = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(turned.to(images.device)[:, None, None, None], images.flip(3), images)


AUGMENTATIONS: dict[str, tuple[Callable[[Tensor, torch.Generator], Tensor], ...]] = {
    "none": (), "crop": (crop,), "flip": (flip,), "crop-flip": (crop, flip)}
"""What is done one after the other: (images [b, c, height, width], generator on the CPU) -> images of that shape."""


def augmented(batch: Batch, name: str, generator: torch.Generator) -> Batch:
    """The batch with its images augmented. Raises `InputError` for inputs that are not one tensor of images."""
    if not AUGMENTATIONS[name]:
        return batch
    tensors = batch.input_tensors()
    if len(tensors) != 1 or tensors[0].ndim != 4 or not tensors[0].is_floating_point():
        came = ", ".join(f"{list(t.shape)} of {str(t.dtype).removeprefix('torch.')}" for t in tensors)
        raise InputError(f"augment={name!r} came for inputs {came}; it takes images [batch, channels, height, width] "
                         "of floating-point numbers, use augment='none' for others")

    def drawn(images: Tensor) -> Tensor:
        for function in AUGMENTATIONS[name]:
            images = function(images, generator)
        return images
    return replace(batch, inputs=map_tensors(batch.inputs, drawn))
