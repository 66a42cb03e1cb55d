"""The list of data sets and checkpoints that are known by name, and where their files are."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pooch

from genmeasure.errors import InputError, unknown

FOLDER = "GENMEASURE_DATA"
"""Environment variable that names the folder in which files are looked for first."""
LIST = "data_manifest.csv"


def entries() -> pd.DataFrame:
    """One row for each data set and checkpoint, all columns as text.

    kind: `embedded` (comes with a library), `data` or `checkpoint`. files: path inside a data folder. rows: examples,
    or weights of a checkpoint. source: a URL, or the repository and commit that the file was taken from.
    """
    return pd.read_csv(_list(), dtype=str, keep_default_na=False)


def entry(name: str) -> dict[str, Any]:
    """The row of `name`; an unknown name raises `InputError` with the nearest one."""
    rows = {row["name"]: row for row in entries().to_dict("records")}
    if name not in rows:
        raise unknown("data set or checkpoint", name, rows)
    return rows[name]


def path(name: str) -> Path:
    """The file of `name`: in the folder GENMEASURE_DATA, then beside the source tree, then in the user's cache.

    Raises `InputError` where it is in none of them, and for data that is embedded and has no file.
    """
    row = entry(name)
    _needs_file(row)
    for folder in folders():
        if (folder / row["files"]).is_file():
            return folder / row["files"]
    raise InputError(f"the file {row['files']} of {name!r} was not found; set {FOLDER} to the folder that holds it"
                     + (f", or fetch it with: genmeasure data fetch {name}" if _url(row) else
                        f" (it was taken from {row['source']})"))


def folders() -> list[Path]:
    """Where files are looked for, in this order."""
    given = [Path(os.environ[FOLDER])] if os.environ.get(FOLDER) else []
    return [*given, Path(__file__).parents[2].parent / "shared" / "pack", cache()]


def cache() -> Path:
    """The folder that fetched files are kept in."""
    return Path(pooch.os_cache("genmeasure"))


def verify(name: str) -> Path:
    """The file of `name`, once its size and sha256 agree with the list; `InputError` where they do not."""
    row, found = entry(name), path(name)
    if found.stat().st_size != int(row["bytes"]):
        raise InputError(f"{found} has {found.stat().st_size} bytes, the list says {row['bytes']}; "
                         "it is damaged or another version: get it again")
    with found.open("rb") as file:
        came = hashlib.file_digest(file, "sha256").hexdigest()
    if came != row["sha256"]:
        raise InputError(f"{found} has the sha256 {came[:12]}…, the list says {row['sha256'][:12]}…; "
                         "it is damaged or another version: get it again")
    return found


def fetch(name: str) -> Path | None:
    """Download `name` into the cache unless it is there, and check its sha256; None for embedded data.

    Raises `InputError` for an entry without a URL, when the download fails and when the hash differs.
    """
    row = entry(name)
    if row["kind"] == "embedded":
        return None
    if not _url(row):
        raise InputError(f"{name!r} has no address to download from (it was taken from {row['source']}); "
                         f"set {FOLDER} to a folder that holds {row['files']}")
    target = cache() / row["files"]
    try:
        pooch.retrieve(row["source"], f"sha256:{row['sha256']}", fname=target.name, path=target.parent)
    except (OSError, ValueError) as error:  # OSError: no network, HTTP status; ValueError: another hash
        if (response := getattr(error, "response", None)) is not None:
            response.close()  # pooch leaves the connection of a refused request open
        raise InputError(f"{name!r} could not be downloaded from {row['source']} "
                         f"({str(error).splitlines()[0]}); try again, or set {FOLDER} to a folder that holds "
                         f"{row['files']}") from error
    return target


def _list() -> Path:
    """Beside this file in an installed package, at the top of a source tree."""
    for place in (Path(__file__).with_name(LIST), Path(__file__).parents[2] / LIST):
        if place.is_file():
            return place
    raise InputError(f"{LIST} was not found beside the package; install genmeasure again")


def _needs_file(row: dict[str, Any]) -> None:
    if row["kind"] == "embedded":
        raise InputError(f"{row['name']!r} is embedded and has no file; load it with "
                         f"genmeasure.data.readers.load('{row['name']}#train')")


def _url(row: dict[str, Any]) -> bool:
    return row["source"].startswith(("https://", "http://"))
