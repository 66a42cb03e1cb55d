"""Turn a one-line specification into batches.

`NAME` of the manifest, `FILE.npz`, `pkg.module:function` or `path/to/file.py:function`; each optionally with
`?key=value&key=value` and `#split`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genmeasure.checkpoints.build import call, seeded, split
from genmeasure.data import manifest
from genmeasure.data.batches import DEFAULT_BATCH_SIZE, Batches
from genmeasure.data.digits import digits
from genmeasure.errors import InputError, unknown
from genmeasure.losses import IGNORED

EMBEDDED = {"digits-0-4": (0, 1, 2, 3, 4), "digits-5-9": (5, 6, 7, 8, 9)}
READ = "a name of the manifest, FILE.npz with x and y, or pkg.module:function"
PARTS = ("x", "y", "clean")
CHANNELS = (1, 3, 4)


def load(spec: str, *, batch_size: int = DEFAULT_BATCH_SIZE) -> Batches:
    """The data set that `spec` describes, in a fixed order.

    An `.npz` holds `x` [n, ...], `y` [n] and optionally `clean` [n] (the true labels where `y` is noisy), or
    `x_train`, `y_train`, … of which `#train` picks one split. Values of type uint8 are pixels: they are scaled to
    [0, 1], and images [n, h, w] or [n, h, w, c] become [n, c, h, w]. `delta` in place of `x` holds uint8 images as
    differences (see `undo_differences`). `?mean=0.5,0.4,0.4&std=0.2,0.2,0.2` normalises channels after that.

    A function returns `Batches`, a tuple or mapping of such arrays, a mapping of splits, or an iterable of batches.

    Raises `InputError` for what is missing, damaged, empty, of unequal lengths, of another type, or not finite.
    """
    if batch_size < 1:
        raise InputError(f"the batch size {batch_size} came; give at least 1")
    target, arguments, part = _parsed(spec)
    if target in EMBEDDED:
        _no_arguments(spec, arguments)
        return _from_mapping(digits(EMBEDDED[target]), part, spec, batch_size)
    if target in set(manifest.entries()["name"]):
        row = manifest.entry(target)
        if row["kind"] == "checkpoint":
            raise InputError(f"{target!r} is a checkpoint, not a data set; give it where weights are asked for")
        return _from_file(manifest.verify(target), arguments, part, spec, batch_size)
    if target.endswith(".npz") or Path(target).exists() or (Path(target).suffix and ":" not in target):
        return _from_file(Path(target), arguments, part, spec, batch_size)
    if ":" in target:
        with seeded(0):
            return _from_object(call(target, arguments), part, spec, batch_size)
    near = difflib.get_close_matches(target, manifest.entries()["name"], n=1, cutoff=0.4)
    raise InputError(f"the data set {spec!r} came; expected {READ}" + (f"; did you mean {near[0]!r}?" if near else ""))


def undo_differences(delta: np.ndarray) -> np.ndarray:
    """uint8 images [n, h, w] or [n, 3, h, w] from their differences, all modulo 256.

    Stored are differences along rows and columns, of colour images after subtracting green from red and from blue;
    this deflates a third smaller than pixels and is exact.
    """
    x = np.cumsum(np.cumsum(delta, -1, dtype=np.uint8), -2, dtype=np.uint8)
    if x.ndim == 4:
        x[:, 0] += x[:, 1]
        x[:, 2] += x[:, 1]
    return x


def _parsed(spec: str) -> tuple[str, dict[str, Any], str]:
    """`target?arguments#split`, the last two in either order -> target, arguments, split or ''."""
    found = re.search(r"#([^?#]*)", spec)
    target, arguments = split(spec if found is None else spec[:found.start()] + spec[found.end():])
    return target, arguments, found.group(1) if found else ""


def _no_arguments(spec: str, arguments: Mapping[str, Any]) -> None:
    if arguments:
        raise InputError(f"the argument {next(iter(arguments))!r} came in {spec!r}, which takes none; leave it out")


def _from_file(path: Path, arguments: dict[str, Any], part: str, name: str, batch_size: int) -> Batches:
    if path.is_dir():
        raise InputError(f"{path} is a folder, and image folders are not read yet; give {READ}")
    if path.suffix != ".npz":
        raise InputError(f"{path} ends in {path.suffix!r}, which is not read yet; give {READ}")
    for key in arguments:
        if key not in ("mean", "std"):
            raise unknown(f"argument of {path.name}", key, ("mean", "std"))
    return _from_mapping(_npz(path), part, name, batch_size, **arguments)


def _npz(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise InputError(f"there is no file {path}; give the path of an existing .npz")
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            names = [k for k in file.files if k.partition("_")[0] in (*PARTS, "delta")]
            arrays, others = {k: file[k] for k in names}, [k for k in file.files if k not in names]
    except Exception as error:  # zipfile, zlib, numpy, TypeError for a bare .npy: all mean the same here
        if "allow_pickle" in str(error) and "Object arrays" in str(error):
            raise InputError(f"{path} stores Python objects, which could run code when opened; "
                             "store plain numbers with numpy.savez") from error
        raise InputError(f"{path} cannot be read as .npz ({path.stat().st_size} bytes, {type(error).__name__}); "
                         "it is damaged, incomplete or of another format: copy or write it again") from error
    for key in [k for k in arrays if k.partition("_")[0] == "delta"]:
        arrays["x" + key.removeprefix("delta")] = undo_differences(arrays.pop(key))
    return arrays | dict.fromkeys(others)


def _from_object(value: Any, part: str, name: str, batch_size: int) -> Batches:
    """What a user's function returned."""
    if isinstance(value, Mapping):
        return _from_mapping(value, part, name, batch_size)
    if part:
        raise InputError(f"the split {part!r} came in {name!r}, whose function returns no mapping of splits; "
                         "leave it out")
    if isinstance(value, Batches):
        return value
    if isinstance(value, (tuple, list)) and len(value) in (2, 3) and all(hasattr(v, "shape") for v in value):
        return _from_mapping(dict(zip(PARTS, value, strict=False)), "", name, batch_size)
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes)):
        raise InputError(f"{name} returned a {type(value).__name__}; return (x, y), a mapping with x and y, "
                         "an iterable of batches, or Batches")
    return Batches(value, name)


def _from_mapping(arrays: Mapping[str, Any], part: str, name: str, batch_size: int, *, mean: Any = None,
                  std: Any = None) -> Batches:
    """Arrays by the names x, y, clean, or these by split."""
    if part and isinstance(arrays.get(part), Mapping):
        arrays, part = arrays[part], ""
    nested = {k for k, v in arrays.items() if isinstance(v, Mapping)}
    splits = sorted(nested | {k.partition("_")[2] for k in arrays if k.startswith(("x_", "y_"))})
    suffix = f"_{part}" if part else ""
    if f"x{suffix}" not in arrays or f"y{suffix}" not in arrays:
        if splits and part not in splits:
            raise InputError((f"there is no split {part!r} in {name!r}" if part else f"{name!r} has several splits")
                             + f"; choose one of {', '.join('#' + s for s in splits)}")
        if part and "x" in arrays and "y" in arrays:
            raise InputError(f"the split {part!r} came in {name!r}, which has no splits; leave #{part} out")
        raise InputError(f"{name!r} holds the arrays {', '.join(sorted(arrays)) or 'none'}; expected x{suffix} "
                         f"[examples, …] and y{suffix} [examples], with these names")
    x, y, clean = (arrays.get(f"{k}{suffix}") for k in PARTS)
    x = _normalised(_inputs(x, name), mean, std, name)
    labels = [_labels(v, k, name) for k, v in (("y", y), ("clean", clean)) if v is not None]
    for found in labels:
        if len(found) != len(x):
            raise InputError(f"{name!r} has {len(x)} inputs and {len(found)} labels; there must be one label for "
                             "each input")
    if not len(x):
        raise InputError(f"the data set {name!r} is empty; at least one example is needed")
    return Batches.from_arrays(x, *labels, batch_size=batch_size, name=name)


def _tensor(values: Any, what: str, name: str) -> Tensor:
    try:
        return values.detach() if isinstance(values, Tensor) else torch.tensor(np.asarray(values))
    except (TypeError, ValueError) as error:
        kind = getattr(values, "dtype", type(values).__name__)
        raise InputError(f"{what} in {name!r} has the type {kind}; it must hold numbers") from error


def _inputs(values: Any, name: str) -> Tensor:
    x = _tensor(values, "x", name)
    if x.dim() == 0:
        raise InputError(f"x in {name!r} is a single number; it must have examples along its first axis")
    if x.is_floating_point() and not bool(x.isfinite().all()):
        bad = int((~x.isfinite()).flatten(1).any(1).sum()) if x.dim() > 1 else int((~x.isfinite()).sum())
        raise InputError(f"x in {name!r} is NaN or infinite in {bad} of {len(x)} examples; repair or drop these")
    if x.dtype != torch.uint8:
        return x
    if x.dim() == 3:
        x = x.unsqueeze(1)
    elif x.dim() == 4 and x.shape[3] in CHANNELS:
        x = x.permute(0, 3, 1, 2)
    elif x.dim() == 4 and x.shape[1] not in CHANNELS:
        raise InputError(f"x in {name!r} has the shape {list(x.shape)} in uint8, so it should hold images; "
                         "give [n, h, w], [n, h, w, c] or [n, c, h, w] with 1, 3 or 4 channels")
    return x.to(torch.float32).contiguous() / 255


def _normalised(x: Tensor, mean: Any, std: Any, name: str) -> Tensor:
    """(x - mean) / std along the second axis."""
    for what, value in (("mean", mean), ("std", std)):
        if value is None:
            continue
        given = torch.as_tensor(value, dtype=torch.float32).reshape(-1)
        if not x.is_floating_point() or x.dim() < 2 or len(given) not in (1, x.shape[1]):
            raise InputError(f"{what}={value} came for inputs of shape {list(x.shape)} and type {x.dtype} in {name!r}; "
                             "give one number, or one for each channel of floating-point inputs")
        if what == "std" and not bool((given > 0).all()):
            raise InputError(f"std={value} came in {name!r}; every entry must be above 0")
        given = given.to(x.dtype).reshape(-1, *[1] * (x.dim() - 2))
        x = x - given if what == "mean" else x / given
    return x


def _labels(values: Any, what: str, name: str) -> Tensor:
    """Class indices [n], or [n, t] of tokens or labels, int64; or the targets of a regression as they are.

    The loss knows which it needs.
    """
    y = _tensor(values, what, name)
    if y.is_floating_point() and y.dim() >= 1:
        if not bool(y.isfinite().all()):
            raise InputError(f"{what} in {name!r} holds NaN or infinite numbers; repair or drop these examples")
        return y
    if y.dim() not in (1, 2) or y.is_complex():
        raise InputError(f"{what} in {name!r} has the shape {list(y.shape)} and the type {y.dtype}; give one class "
                         "index for each example, or one for each of its tokens or labels")
    y = y.to(torch.int64)
    used = y if y.dim() == 1 else y[y != IGNORED]
    if len(used) and used.min() < 0:
        raise InputError(f"{what} in {name!r} goes down to {used.min()}; class indices start at 0")
    return y
