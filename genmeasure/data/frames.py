"""Tables of examples: `.tsv`, `.csv`, `.parquet`, lines of a `.txt`, and folders that `datasets` saved."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pandas as pd

from genmeasure.checkpoints.build import library
from genmeasure.errors import InputError

SEPARATORS = {".tsv": "\t", ".csv": ","}
TABLES = (*SEPARATORS, ".parquet", ".txt")
ARROW = ("dataset_info.json", "dataset_dict.json", "state.json")
DAMAGED = "it is damaged, incomplete or of another format: copy or write it again"


def kind(path: Path) -> str:
    """The extension, before one of compression: `.tsv` of `a.tsv.gz`."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets` saved this folder (`save_to_disk`)."""
    return any((folder / name).is_file() for name in ARROW)


def read(path: Path, part: str) -> pd.DataFrame:
    """The rows of a table, text as text. Tab-separated files are read without quoting, as GLUE is written.

    part: a split of a saved data set. Raises `InputError` for what is damaged, and for a split that is not there.
    """
    if path.is_dir():
        return _saved(path, part)
    if part:
        raise InputError(f"the split {part!r} came for {path}, which has no splits; leave #{part} out, or make one "
                         "with ?holdout=0.1")
    if not path.exists():
        raise InputError(f"there is no file {path}; give the path of an existing one")
    found = kind(path)
    try:
        if found == ".parquet":
            library("pyarrow", "parquet")
            return pd.read_parquet(path)
        if found == ".txt":
            with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
                return pd.DataFrame({"text": [line for line in file.read().splitlines() if line.strip()]})
        return pd.read_csv(path, sep=SEPARATORS[found], dtype=str, keep_default_na=False,
                           quoting=csv.QUOTE_NONE if found == ".tsv" else csv.QUOTE_MINIMAL)
    except InputError:
        raise
    except Exception as error:  # pandas, pyarrow, zlib and UnicodeDecodeError: all mean the same here
        raise InputError(f"{path} cannot be read as a table ({type(error).__name__}); {DAMAGED}") from error


def _saved(folder: Path, part: str) -> pd.DataFrame:
    """Arrow files, in the order that `state.json` lists them."""
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        if part not in splits:
            raise InputError((f"there is no split {part!r} in {folder}" if part else f"{folder} has several splits")
                             + f"; choose one of {', '.join('#' + s for s in sorted(splits))}")
        folder = folder / part
    elif part:
        raise InputError(f"the split {part!r} came for {folder}, which has no splits; leave #{part} out, or make one "
                         "with ?holdout=0.1")
    arrow = library("pyarrow", "parquet")
    import pyarrow.ipc
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        tables = []
        for file in state["_data_files"]:
            with arrow.memory_map(str(folder / file["filename"])) as source:
                tables.append(pyarrow.ipc.open_stream(source).read_all().to_pandas())
        return pd.concat(tables, ignore_index=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} cannot be read as a data set that `datasets` saved ({type(error).__name__}); "
                         f"{DAMAGED}") from error
