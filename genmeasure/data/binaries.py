"""Images in the binary formats of CIFAR and MNIST."""

from __future__ import annotations

import gzip
import re
import tarfile
from pathlib import Path

import numpy as np

from genmeasure.errors import InputError

PIXELS = 3 * 32 * 32
CIFAR_BATCH = r"(data_batch_\d+|train|test(_batch)?)\.bin$"
IDX = r"(images|labels)[-.]idx[13]-ubyte(\.gz)?$"
DAMAGED = "it is damaged, incomplete or of another format: copy or download it again"


def is_binary(path: Path) -> bool:
    """Whether the file is named as those of CIFAR (a batch, or the archive of all) or MNIST are."""
    return bool(re.search(CIFAR_BATCH, path.name) or re.search(IDX, path.name)
                or re.fullmatch(r"cifar-10{1,2}-binary\.tar\.gz", path.name))


def read(path: Path) -> dict[str, np.ndarray]:
    """x [n, 3, 32, 32] or [n, h, w] uint8 and y [n]; with `_train` and `_test` behind the names for CIFAR's archive.

    CIFAR-100 has a coarse and a fine label, of which y is the fine one. Of MNIST the images are named, and the labels
    lie beside them. Raises `InputError` for a file that is damaged or missing.
    """
    try:
        if path.name.endswith(".tar.gz"):
            return _archive(path)
        if re.search(IDX, path.name):
            images, labels = (_idx(path.with_name(re.sub("(images|labels)", kind, path.name, count=1).replace(
                *("idx1", "idx3") if kind == "images" else ("idx3", "idx1")))) for kind in ("images", "labels"))
            return {"x": images, "y": labels}
        content = path.read_bytes()
        return _cifar(content, 2 if path.name in ("train.bin", "test.bin") else 1)
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}: {error}); {DAMAGED}") from error


def _archive(path: Path) -> dict[str, np.ndarray]:
    """CIFAR's archive of binary batches: the files of each split in the order of their names."""
    labels = 2 if "cifar-100" in path.name else 1
    parts: dict[str, list[dict[str, np.ndarray]]] = {"train": [], "test": []}
    with tarfile.open(path, "r:gz") as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            if re.search(CIFAR_BATCH, member.name):
                content = archive.extractfile(member).read()
                parts["test" if "test" in member.name else "train"].append(_cifar(content, labels))
    if not all(parts.values()):
        raise ValueError("it holds no training or no test batches")
    return {f"{k}_{split}": np.concatenate([b[k] for b in some]) for split, some in parts.items() for k in ("x", "y")}


def _cifar(content: bytes, labels: int) -> dict[str, np.ndarray]:
    """Records of `labels` bytes (the last one is the class) and 3 x 32 x 32 pixels."""
    rows = np.frombuffer(content, np.uint8).reshape(-1, labels + PIXELS)
    return {"x": rows[:, labels:].reshape(-1, 3, 32, 32), "y": rows[:, labels - 1].astype(np.int64)}


def _idx(path: Path) -> np.ndarray:
    """Two zero bytes, the type (8: unsigned bytes), the number of axes, their lengths as big-endian int32, the data."""
    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
        content = file.read()
    if content[:3] != b"\0\0\x08":
        raise ValueError("it does not begin as unsigned bytes in the IDX format do")
    shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)
