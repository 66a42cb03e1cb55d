"""Image files: a folder with one folder per class, or a table that names files and labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from genmeasure.engine import progress
from genmeasure.errors import InputError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
SPLITS = ("train", "val", "valid", "validation", "test")


def is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS


def find(folder: Path, part: str) -> tuple[list[Path], list[int], list[str]]:
    """The files below a folder of classes in the order of their names, their class numbers, and the classes' names.

    part: the folder of a split, where there are such. Raises `InputError` for a folder that is laid out otherwise.
    """
    splits = [p.name for p in sorted(folder.iterdir()) if p.is_dir() and p.name in SPLITS]
    if splits and part not in splits:
        raise InputError((f"there is no split {part!r} in {folder}" if part else f"{folder} has several splits")
                         + f"; choose one of {', '.join('#' + s for s in splits)}")
    if part and not splits:
        raise InputError(f"the split {part!r} came for {folder}, which has no splits; leave #{part} out, or make one "
                         "with ?holdout=0.1")
    root = folder / part
    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    files = {name: sorted(p for p in (root / name).rglob("*") if is_image(p)) for name in classes}
    if not any(files.values()):
        raise InputError(f"{root} holds no folders with images ({', '.join(EXTENSIONS)}); give a folder with one "
                         "folder of images per class")
    return ([p for name in classes for p in files[name]], [i for i, name in enumerate(classes) for _ in files[name]],
            classes)


def pixels(files: Sequence[Path], *, resize: int | None, crop: int | None, channels: int) -> np.ndarray:
    """[n, h, w, channels] uint8: the shorter side resized to `resize`, then the middle `crop` x `crop` pixels.

    Bilinear with antialiasing, as torchvision's evaluation transforms. Raises `InputError` for a file that is no image,
    a picture smaller than its crop, and pictures of unequal sizes.
    """
    found = []
    for path in progress(files, "images"):
        picture = _picture(path, resize, crop, channels)
        if found and picture.shape != found[0].shape:
            raise InputError(f"{path} is {picture.shape[1]} x {picture.shape[0]} pixels and {files[0]} "
                             f"{found[0].shape[1]} x {found[0].shape[0]}; make them alike with ?resize=256&crop=224")
        found.append(picture)
    return np.stack(found)


def _picture(path: Path, resize: int | None, crop: int | None, channels: int) -> np.ndarray:
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB" if channels == 3 else "L")
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{path} cannot be read as an image ({type(error).__name__}); it is damaged or of another "
                         "format: copy it again or take it away") from error
    if resize is not None:
        width, height = picture.size
        scale = resize / min(width, height)
        long = int(resize * max(width, height) / min(width, height))
        size = (resize, long) if width <= height else (long, resize)
        picture = picture if scale == 1 else picture.resize(size, Image.Resampling.BILINEAR)
    if crop is not None:
        width, height = picture.size
        if min(width, height) < crop:
            raise InputError(f"{path} is {width} x {height} pixels, smaller than crop={crop}; add ?resize={crop} or "
                             "more")
        left, top = round((width - crop) / 2), round((height - crop) / 2)
        picture = picture.crop((left, top, left + crop, top + crop))
    return np.asarray(picture).reshape(picture.size[1], picture.size[0], channels)
