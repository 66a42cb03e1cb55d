"""How every figure looks: print sizes, colours for the colour-blind, markers and lines that repeat what colours say."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import matplotlib
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Okabe and Ito's, without the yellow that vanishes on paper."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)), (0, (8, 2)), (0, (3, 1)))
WIDTH = 6.3
"""Inches: the text width of a paper in one column."""

RC = {
    "font.size": 9, "axes.labelsize": 9, "axes.titlesize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "legend.fontsize": 8, "legend.title_fontsize": 8, "legend.frameon": False, "axes.spines.top": False,
    "axes.spines.right": False, "axes.linewidth": 0.7, "xtick.major.width": 0.7, "ytick.major.width": 0.7,
    "lines.linewidth": 1.4, "lines.markersize": 4.5, "axes.grid": False, "figure.facecolor": "white",
    "savefig.facecolor": "white", "svg.hashsalt": "genmeasure", "svg.fonttype": "path", "font.family": "DejaVu Sans",
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Run `draw` under this style and leave the caller's as it was."""
    @functools.wraps(draw)
    def drawn(*args, **kwargs) -> Figure:
        with matplotlib.rc_context(RC):
            return draw(*args, **kwargs)
    return drawn


def figure(width: float = WIDTH, height: float = 3.0, *, alt: str) -> Figure:
    """An empty figure of the object interface; its label is the text for those who cannot see it."""
    made = Figure(figsize=(width, height), layout="constrained")
    made.set_label(alt)
    return made


def colours(levels: Sequence[str]) -> dict[str, str]:
    """A colour per level: from light to dark where the levels are numbers, else Okabe and Ito's."""
    try:
        [float(level) for level in levels]
    except ValueError:
        return {level: COLOURS[i % len(COLOURS)] for i, level in enumerate(levels)}
    if len(levels) < 2:
        return dict.fromkeys(levels, COLOURS[0])
    ramp = colormaps["viridis"]
    return {level: to_hex(ramp(0.85 - 0.85 * i / (len(levels) - 1))) for i, level in enumerate(levels)}


def save(made: Figure, path: str, **options) -> None:
    """Write PNG or SVG; the same figure gives the same bytes."""
    extra = {"Date": None, "Description": made.get_label()} if str(path).endswith("svg") else {
        "Software": None, "Description": made.get_label()}
    with matplotlib.rc_context(RC):
        made.savefig(path, metadata=extra, **options)


def panel_label(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left")
