"""Arrays from files, without ever running what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from genmeasure.errors import InputError


def array(given: Any) -> Any:
    """What was given, or the numbers in the `.npy` or `.csv` file that it names; `InputError` for another file."""
    if not isinstance(given, (str, Path)):
        return given
    path = _existing(given)
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        if path.suffix == ".csv":
            values = np.loadtxt(path, delimiter=",")
            return values.astype(np.int64) if (values == values.round()).all() else values
    except ValueError as error:
        raise InputError(f"{path} could not be read ({str(error).splitlines()[0]}); give numbers as .npy or "
                         ".csv") from error
    raise InputError(f"the file {str(given)!r} came; give an array as .npy or .csv")


def arrays(path: str | Path) -> Mapping[str, np.ndarray]:
    """The arrays of an `.npz` file by name; `InputError` for another file, and for one with pickled objects in it."""
    path = _existing(path)
    if path.suffix != ".npz":
        raise InputError(f"the file {str(path)!r} came; give arrays as .npz (of a torch file, load it with "
                         "torch.load(…, weights_only=True) and save its arrays with numpy.savez)")
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except ValueError as error:
        raise InputError(f"{path} could not be read ({str(error).splitlines()[0]}); give an .npz of numbers "
                         "alone") from error


def _existing(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise InputError(f"the file {str(path)!r} does not exist; give the path of a file")
    return Path(path)
