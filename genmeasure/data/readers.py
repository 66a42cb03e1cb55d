"""Turn a one-line specification into batches.

`NAME` of the manifest, `FILE.npz`, a table of texts or image files (`.tsv`, `.csv`, `.parquet`, `.txt`), an image
folder, a folder that `datasets` saved, a binary of CIFAR or MNIST, `pkg.module:function` or
`path/to/file.py:function`; each optionally with `?key=value&key=value` and `#split`.
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
from genmeasure.checkpoints.locate import locate
from genmeasure.data import binaries, frames, images, manifest, texts
from genmeasure.data.batches import DEFAULT_BATCH_SIZE, Batches
from genmeasure.data.digits import digits
from genmeasure.data.label_noise import noisy_labels
from genmeasure.data.selection import Selection
from genmeasure.errors import InputError, unknown
from genmeasure.losses import IGNORED

EMBEDDED = {"digits-0-4": (0, 1, 2, 3, 4), "digits-5-9": (5, 6, 7, 8, 9)}
READ = ("a name of the manifest, FILE.npz with x and y, a table (.tsv, .csv, .parquet, .txt), a folder of images or of "
        "datasets, or pkg.module:function")
PARTS = ("x", "y", "clean")
CHANNELS = (1, 3, 4)
NORMALISING, CUTTING = ("mean", "std"), ("resize", "crop", "channels")
"""Arguments of pixels, and of image files."""
READING = ("text", "label", "separator", "tokenizer", "task", "max_length", "image", "folder")
"""Arguments of tables."""
TASKS = {"next-token-cross-entropy": "causal-lm", "token-cross-entropy": "token-classification"}
"""Losses by what the labels of texts are."""


def load(spec: str, *, batch_size: int = DEFAULT_BATCH_SIZE, tokenizer: str | None = None,
         task: str = "sequence-classification") -> Batches:
    """The data set that `spec` describes, in a fixed order.

    An `.npz` holds `x` [n, ...], `y` [n] and optionally `clean` [n] (the true labels where `y` is noisy), or
    `x_train`, `y_train`, … of which `#train` picks one split. Values of type uint8 are pixels: they are scaled to
    [0, 1], and images [n, h, w] or [n, h, w, c] become [n, c, h, w]. `delta` in place of `x` holds uint8 images as
    differences (see `undo_differences`). `?mean=0.5,0.4,0.4&std=0.2,0.2,0.2` normalises channels after that.

    Image folders hold a folder per class, below folders of splits where there are such; `?resize=256&crop=224` cuts.
    Tables hold texts (`?text=COLUMN` or two with a comma, `?label=COLUMN`), which the tokenizer in the folder
    `?tokenizer=` turns into tokens for `?task=` (sequence-classification, token-classification, causal-lm), at most
    `?max_length=` of them; or names of image files (`?image=COLUMN`, relative to `?folder=`). `?label=a,b` or
    `?separator=|` is for several labels per example.

    Of files, `?rows=`, `?holdout=` and `?ways=&shots=&queries=&episode=` take a part by `?seed=`, see `Selection`.
    `?noise=KIND:key=value,…` then makes labels wrong, those of the part alone: `noise=symmetric:rate=0.4,seed=3`. The
    true ones become the clean labels, and `Batches.confusion` is P(given | true).
    Nothing is augmented. tokenizer, task: what is taken where the specification does not say.

    A function returns `Batches`, a tuple or mapping of such arrays, a mapping of splits, or an iterable of batches.

    Raises `InputError` for what is missing, damaged, empty, of unequal lengths, of another type, or not finite.
    """
    if batch_size < 1:
        raise InputError(f"the batch size {batch_size} came; give at least 1")
    target, arguments, part = _parsed(spec)
    noise = None if _is_function(target) else arguments.pop("noise", None)
    found = _loaded(spec, target, arguments, part, batch_size, {"tokenizer": tokenizer, "task": task})
    return found if noise is None else with_noise(found, noise, spec)


def _is_function(target: str) -> bool:
    return ":" in target and not target.endswith(".npz") and not Path(target).exists()


def with_noise(data: Batches, noise: Any, spec: str) -> Batches:
    """Labels as `noise` makes them, among the classes 0..largest label.

    Raises `InputError` for noise that is not known and for labels that are not one class per example.
    """
    labels = data.labels if len({t.shape[1:] for t in data.targets}) == 1 else torch.empty(0, 0)
    if not isinstance(noise, str) or labels.ndim != 1 or labels.is_floating_point():
        raise InputError(f"noise={noise!r} came in {spec!r}, whose labels have the shape {list(labels.shape)}; give a "
                         "kind of noise, as in noise=symmetric:rate=0.4, for data with one class per example")
    noisy = noisy_labels(noise, labels, int(labels.max()) + 1)
    return data.relabelled(noisy.labels, f"label noise {noise}", noisy.confusion)


def _loaded(spec: str, target: str, arguments: dict[str, Any], part: str, batch_size: int,
            defaults: Mapping[str, Any]) -> Batches:
    if target in EMBEDDED:
        _no_arguments(spec, arguments)
        return _from_mapping(digits(EMBEDDED[target]), part, spec, batch_size)
    if target in set(manifest.entries()["name"]):
        row = manifest.entry(target)
        if row["kind"] == "checkpoint":
            raise InputError(f"{target!r} is a checkpoint, not a data set; give it where weights are asked for")
        return _from_file(manifest.verify(target), defaults, arguments, part, spec, batch_size)
    if target.endswith(".npz") or Path(target).exists() or (Path(target).suffix and ":" not in target):
        return _from_file(Path(target), defaults, arguments, part, spec, batch_size)
    if _is_function(target):
        with seeded(0):
            return _from_object(call(target, arguments), part, spec, batch_size)
    near = difflib.get_close_matches(target, manifest.entries()["name"], n=1, cutoff=0.4)
    raise InputError(f"the data set {spec!r} came; expected {READ}" + (f"; did you mean {near[0]!r}?" if near else ""))


def load_for(model: str, spec: str, *, loss: str = "cross-entropy", batch_size: int = DEFAULT_BATCH_SIZE) -> Batches:
    """The data set that `spec` describes, for a model by its specification: texts become tokens by the tokenizer in its
    folder, with the labels that the loss needs."""
    family, _, folder = split(model)[0].partition(":")
    place = locate(folder) if family == "hf" else None
    return load(spec, batch_size=batch_size, task=TASKS.get(loss, "sequence-classification"),
                tokenizer=str(place) if place is not None and texts.has_tokenizer(place) else None)


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


def _from_file(path: Path, defaults: Mapping[str, Any], arguments: dict[str, Any], part: str, name: str,
               batch_size: int) -> Batches:
    selection, arguments = Selection.split(arguments, name)
    stored = selection.stored_part(part, name)
    if frames.is_saved_dataset(path) or (path.is_file() and frames.kind(path) in frames.TABLES):
        return _from_frame(path, defaults, arguments, selection, part, stored, name, batch_size)
    if path.is_dir():
        _known(arguments, (*NORMALISING, *CUTTING), path)
        files, labels, classes = images.find(path, stored)
        positions, chosen, notes = selection.chosen(torch.tensor(labels), part, name)
        notes.append(f"classes {', '.join(classes[:10])}{', …' if len(classes) > 10 else ''}")
        return _from_images([files[i] for i in positions], chosen, arguments, notes, name, batch_size)
    if binaries.is_binary(path) and path.exists():
        arrays: Mapping[str, Any] = binaries.read(path)
    elif path.suffix == ".npz":
        arrays = _npz(path)
    elif not path.exists():
        raise InputError(f"there is no file {path}; give {READ}")
    else:
        raise InputError(f"{path} ends in {path.suffix!r}, which is not read; give {READ}")
    _known(arguments, NORMALISING, path)
    return _from_mapping(arrays, stored, name, batch_size, **arguments, selection=selection, chosen=part)


def _known(arguments: Mapping[str, Any], names: Iterable[str], path: Path) -> None:
    for key in arguments:
        if key not in names:
            raise unknown(f"argument of {path.name}", key, (*names, *Selection.__dataclass_fields__, "noise"))


def _from_images(files: list[Path], labels: Tensor, arguments: Mapping[str, Any], notes: list[str], name: str,
                 batch_size: int) -> Batches:
    if not files:
        raise InputError(f"the data set {name!r} is empty; at least one example is needed")
    settings = {k: arguments.get(k) for k in CUTTING}
    for key, value in settings.items():
        if value is not None and (type(value) is not int or value < 1 or (key == "channels" and value not in (1, 3))):
            raise InputError(f"{key}={value!r} came in {name!r}; give "
                             + ("1 or 3" if key == "channels" else "a number of pixels"))
    settings["channels"] = settings["channels"] or 3
    notes = [*notes, *(f"{what} {settings[key]} pixels" for key, what in (
        ("resize", "shorter side resized to"), ("crop", "middle cropped to")) if settings[key])]
    x = images.pixels(files, **settings)
    given = {k: v for k, v in arguments.items() if k in NORMALISING}
    return _from_mapping({"x": x, "y": labels}, "", name, batch_size, **given, notes=notes)


def _from_frame(path: Path, defaults: Mapping[str, Any], arguments: dict[str, Any], selection: Selection, part: str,
                stored: str, name: str, batch_size: int) -> Batches:
    _known(arguments, (*READING, *NORMALISING, *CUTTING), path)
    frame = frames.read(path, stored)
    if not len(frame):
        raise InputError(f"the data set {name!r} is empty; at least one example is needed")
    given = {**{k: v for k, v in defaults.items() if v is not None}, **arguments}
    task, label, separator = given["task"], given.get("label"), given.get("separator")
    if task not in texts.TASKS:
        raise unknown("task", str(task), texts.TASKS)
    label = ",".join(map(str, label)) if isinstance(label, tuple) else label
    classes: list[str] = []
    if task == "causal-lm" or task == "token-classification":
        labels = torch.zeros(len(frame), dtype=torch.int64)
    elif separator is not None or (label and "," in label):
        labels, classes = texts.several(frame, label or "labels", separator, name)
    else:
        labels, classes = texts.numbers(frame[texts.label_column(frame, label, name)], name)
    positions, chosen, notes = selection.chosen(labels, part, name)
    if classes:
        notes.append(f"classes {', '.join(classes[:10])}{', …' if len(classes) > 10 else ''}")
    rows = frame.iloc[positions.numpy()]
    if "image" in given:
        folder = Path(given.get("folder", path.parent))
        files = [folder / str(v) for v in rows[texts.columns(frame, str(given["image"]), name)[0]]]
        return _from_images(files, chosen, {k: v for k, v in arguments.items() if k not in READING}, notes, name,
                            batch_size)
    if wrong := next((k for k in arguments if k in (*NORMALISING, *CUTTING)), None):
        raise InputError(f"the argument {wrong!r} came in {name!r}, which holds texts; leave it out")
    length = given.get("max_length", texts.MAX_LENGTH)
    if type(length) is not int or length < 2:
        raise InputError(f"max_length={length!r} came in {name!r}; give a number of tokens, at least 2")
    found = texts.columns(frame, given.get("text"), name)
    tokens = texts.get_tokenizer(given.get("tokenizer"), name)
    if task == "token-classification":
        chosen = [list(v) for v in rows[texts.label_column(frame, label, name)]]
    notes.append(f"{', '.join(found)} as at most {length} tokens of {type(tokens).__name__}")
    batches = texts.TokenBatches(tokens, tuple(_texts(rows[c], task) for c in found),
                                None if task == "causal-lm" else chosen, task, length, batch_size)
    return Batches(iter(batches), name, tuple(notes))  # an iterator is kept: tokens are made once


def _texts(values: Any, task: str) -> list:
    return [list(v) for v in values] if task == "token-classification" else [str(v) for v in values]


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
                  std: Any = None, selection: Selection | None = None, chosen: str = "",
                  notes: Iterable[str] = ()) -> Batches:
    """Arrays by the names x, y, clean, or these by split; of these what `selection` takes as its part `chosen`."""
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
    pixels = getattr(x, "dtype", None) in (np.uint8, torch.uint8)
    labels = [_labels(v, k, name) for k, v in (("y", y), ("clean", clean)) if v is not None]
    x = _tensor(x, "x", name)
    if x.dim() == 0:
        raise InputError(f"x in {name!r} is a single number; it must have examples along its first axis")
    for found in labels:
        if len(found) != len(x):
            raise InputError(f"{name!r} has {len(x)} inputs and {len(found)} labels; there must be one label for "
                             "each input")
    if not len(x):
        raise InputError(f"the data set {name!r} is empty; at least one example is needed")
    notes = list(notes)
    if selection is not None:
        positions, labels[0], drawn = selection.chosen(labels[0], chosen, name)
        x, labels[1:], notes = x[positions], [v[positions] for v in labels[1:]], [*notes, *drawn]
    x = _normalised(_inputs(x, name), mean, std, name)
    notes += ["pixels scaled to 0..1"] * pixels
    notes += [f"{what} {value}" for what, value in (("minus mean", mean), ("divided by std", std)) if value is not None]
    return Batches.from_arrays(x, *labels, batch_size=batch_size, name=name, notes=tuple(notes))


def _tensor(values: Any, what: str, name: str) -> Tensor:
    try:
        return values.detach() if isinstance(values, Tensor) else torch.tensor(np.asarray(values))
    except (TypeError, ValueError) as error:
        kind = getattr(values, "dtype", type(values).__name__)
        raise InputError(f"{what} in {name!r} has the type {kind}; it must hold numbers") from error


def _inputs(x: Tensor, name: str) -> Tensor:
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
