"""The list of data sets and checkpoints that are known by name, and where their files are."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pooch
import requests
from tqdm import tqdm

from genmeasure.errors import InputError, unknown

FOLDER = "GENMEASURE_DATA"
"""Environment variable that names the folder in which files are looked for first."""
LIST = "data_manifest.csv"
TIMEOUT = 30
"""Seconds without an answer after which a download gives up; what came is kept."""
PIECE = 1 << 16
"""Bytes that are written at once: the most that an interrupted download loses."""


def entries() -> pd.DataFrame:
    """One row for each data set and checkpoint, all columns as text.

    kind: `embedded` (comes with a library), `data` or `checkpoint`. files: path inside a data folder; empty where the
    data set has to be got from its source by hand. sha256: of the file, or `md5:` and what its publisher states. bytes,
    licence, rows: empty where they are not known. rows: examples, or weights of a checkpoint. splits: their names, with
    sizes where these are known. source: a URL, or the repository and commit that the file was taken from.
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
    if row["bytes"] and found.stat().st_size != int(row["bytes"]):
        raise InputError(f"{found} has {found.stat().st_size} bytes, the list says {row['bytes']}; "
                         "it is damaged or another version: get it again")
    kind, expected = _hash(row)
    with found.open("rb") as file:
        came = hashlib.file_digest(file, kind).hexdigest()
    if came != expected:
        raise InputError(f"{found} has the {kind} {came[:12]}…, the list says {expected[:12]}…; "
                         "it is damaged or another version: get it again")
    return found


def fetch(name: str) -> Path | None:
    """Download `name` into the cache unless it is there, and check its hash; None for embedded data.

    What an interrupted download left is kept beside the target, and the next call goes on from there.

    Raises `InputError` for an entry without a URL, when the download fails and when the hash differs.
    """
    row = entry(name)
    if row["kind"] == "embedded":
        return None
    _needs_file(row)
    if not _url(row):
        raise InputError(f"{name!r} has no address to download from (it was taken from {row['source']}); "
                         f"set {FOLDER} to a folder that holds {row['files']}")
    target, expected = cache() / row["files"], ":".join(_hash(row))
    try:
        pooch.retrieve(row["source"], expected, fname=target.name, path=target.parent,
                       downloader=Resuming(target.with_name(f"{target.name}.part")))
    except (OSError, ValueError) as error:  # OSError: no network, HTTP status; ValueError: another hash
        if (response := getattr(error, "response", None)) is not None:
            response.close()  # pooch leaves the connection of a refused request open
        raise InputError(f"{name!r} could not be downloaded from {row['source']} "
                         f"({str(error).splitlines()[0]}); try again, or set {FOLDER} to a folder that holds "
                         f"{row['files']}") from error
    return target


@dataclass(frozen=True)
class Resuming:
    """A downloader for pooch that keeps what it has in `part` and asks the server for the rest only.

    A server that sends the whole file all the same is read from the beginning. `part` is taken away when it is
    complete, whether or not its hash turns out to be right.
    """

    part: Path

    def __call__(self, url: str, output_file: str, retriever: Any) -> None:
        have = self.part.stat().st_size if self.part.is_file() else 0
        headers = {"Range": f"bytes={have}-"} if have else {}
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code != requests.codes.range_not_satisfiable:  # nothing is missing
                response.raise_for_status()
                again = response.status_code != requests.codes.partial_content
                total = int(response.headers.get("Content-Length", 0))
                with self.part.open("wb" if again else "ab") as file, tqdm(
                        total=total, unit="B", unit_scale=True, delay=2, leave=False, desc=self.part.stem,
                        disable=None) as bar:
                    for piece in response.iter_content(PIECE):
                        file.write(piece)
                        bar.update(len(piece))
        self.part.replace(output_file)


def _hash(row: dict[str, Any]) -> tuple[str, str]:
    """The kind of hash and its digits; `InputError` where the list has none."""
    if not row["sha256"]:
        raise InputError(f"the list holds no hash of {row['name']!r}, so that it cannot be checked; give the file by "
                         "its path")
    kind, colon, digits = row["sha256"].partition(":")
    return (kind, digits) if colon else ("sha256", kind)


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
    if not row["files"]:
        raise InputError(f"{row['name']!r} is not one file that can be fetched; get it from "
                         f"{row['source'] or 'its authors'} and give its path")


def _url(row: dict[str, Any]) -> bool:
    return row["source"].startswith(("https://", "http://"))
