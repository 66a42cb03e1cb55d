"""How the published figures look, and where they go.

A script in this folder reads the readings of finished runs and writes one figure or table:

    import style

    readings = style.readings("out/label_noise")
    with style.paper():
        figure, panel = style.canvas(width=style.HALF, height=2.4)
        ...
    style.save(figure, "label_noise")
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import pandas as pd
import seaborn
from matplotlib.figure import Figure

FULL, HALF = 6.3, 3.1
"""Inches: text width of a one-column paper, and two figures side by side."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Okabe and Ito's, without the yellow that vanishes on paper. Give every colour its own marker or line as well."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)), (0, (8, 2)), (0, (3, 1)))

RC = {
    "font.size": 9, "axes.labelsize": 9, "axes.titlesize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "legend.fontsize": 8, "legend.title_fontsize": 8, "legend.frameon": False, "axes.spines.top": False,
    "axes.spines.right": False, "axes.linewidth": 0.7, "xtick.major.width": 0.7, "ytick.major.width": 0.7,
    "lines.linewidth": 1.4, "lines.markersize": 4.5, "figure.facecolor": "white", "savefig.facecolor": "white",
    "font.family": "DejaVu Sans", "pdf.fonttype": 42, "svg.hashsalt": "genmeasure",
}


@contextmanager
def paper() -> Iterator[None]:
    """The style within a `with` block; the caller's settings afterwards."""
    with matplotlib.rc_context(RC), seaborn.color_palette(COLOURS):
        yield


def canvas(rows: int = 1, columns: int = 1, *, width: float = FULL, height: float = 2.6, **options):
    """A figure of the object interface and its panels; `options` go to `Figure.subplots`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def readings(run: str | Path, **where: object) -> pd.DataFrame:
    """Readings of a run folder without the failed ones; `where` keeps rows such as measure="gap", term="loss-gap"."""
    path = Path(run) / "readings.csv"
    if not path.is_file():
        raise SystemExit(f"{path} is missing; this figure needs a finished run; run its study in analysis/ first")
    numbers = {c: ["", "nan"] for c in ("sigma", "value", "stderr", "n", "seconds", "passes")}
    columns = pd.read_csv(path, nrows=0).columns
    frame = pd.read_csv(path, keep_default_na=False, na_values={c: numbers.get(c, []) for c in columns},
                        low_memory=False)
    frame = frame[frame["error"] == ""]
    for column, value in where.items():
        frame = frame[frame[column] == value]
    return frame


def save(figure: Figure, name: str, folder: str | Path = "out/figures") -> list[Path]:
    """Write NAME.pdf and NAME.png (300 dots per inch); the same readings give the same bytes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{name}.pdf", folder / f"{name}.png"]
    with matplotlib.rc_context(RC):
        figure.savefig(written[0], metadata={"CreationDate": None})
        figure.savefig(written[1], dpi=300, metadata={"Software": None})
    return written


def write_table(table: pd.DataFrame, text: str, name: str, folder: str | Path = "out/figures") -> None:
    """Write NAME.csv, and NAME.md with the text of the table."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    table.to_csv(Path(folder) / f"{name}.csv", index=False)
    (Path(folder) / f"{name}.md").write_text(text + "\n", encoding="utf-8")
