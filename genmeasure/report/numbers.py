"""Numbers as a reader wants them: as many digits as are known, powers of ten where needed.

A table keeps full precision; a column `x` may have companions `x stderr` (or `x sd`) or `x low` and `x high`, which
are shown with it as `x ± stderr` or `x [low, high]`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

COMPANIONS = (" stderr", " low", " high", " sd")
MISSING = "–"
_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


@dataclass(frozen=True)
class Cell:
    """What a table shows (`text`) and by what it is sorted (`key`: a number, or the text itself)."""

    text: str
    key: float | str


def number(value: float, stderr: float = math.nan) -> str:
    """`1.62×10⁶`, `0.531 ± 0.012`, `∞`, `–` for nan. The standard error has two digits and sets those of the value.

    A standard error of 0 (exact) or below a millionth of the value is not shown.
    """
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    known = math.isfinite(stderr) and stderr > 1e-6 * abs(value)
    exponent = _exponent(max(abs(value), stderr) if known else abs(value))
    power = "" if -4 <= exponent < 5 else f"×10{str(exponent).translate(_RAISED)}"
    scale = 10.0**-exponent if power and abs(exponent) < 300 else 1.0
    if power and scale == 1.0:  # 10**exponent itself leaves the range of a float
        return f"{value:.3e}".split("e")[0].replace("-", "−") + power
    if not known:
        return _plain(value * scale, 3 if power else 4) + power
    decimals = max(0, 1 - _exponent(stderr * scale))
    text = f"{value * scale:.{decimals}f} ± {stderr * scale:.{decimals}f}".replace("-", "−")
    return f"({text}){power}" if power else text


def interval(value: float, low: float, high: float) -> str:
    """`0.71 [0.52, 0.84]`."""
    if math.isnan(value):
        return MISSING
    if math.isnan(low) or math.isnan(high) or low == value == high:
        return number(value)
    small = all(math.isfinite(v) and (v == 0 or -3 <= _exponent(abs(v)) < 2) for v in (value, low, high))
    show = (lambda v: f"{v:.2f}".replace("-", "−")) if small and _exponent(abs(value)) >= -1 else number
    return f"{show(value)} [{show(low)}, {show(high)}]"


def cells(table: pd.DataFrame) -> tuple[list[str], list[list[Cell]]]:
    """Shown headers and rows of a table; companions are merged into their column."""
    shown = [c for c in table.columns if not any(c.endswith(e) and c[: -len(e)] in table.columns for e in COMPANIONS)]
    return shown, [[_cell(table, position, column) for column in shown] for position in range(len(table))]


def is_number(table: pd.DataFrame, column: str) -> bool:
    """Whether a column holds numbers (and is set flush right)."""
    return pd.api.types.is_numeric_dtype(table[column]) and not pd.api.types.is_bool_dtype(table[column])


def _cell(table: pd.DataFrame, position: int, column: str) -> Cell:
    value = table[column].iloc[position]
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return Cell(MISSING if is_number(table, column) else "", "")
    if isinstance(value, bool | np.bool_):
        return Cell("yes" if value else "no", "yes" if value else "no")
    if isinstance(value, int | np.integer):
        return Cell(str(value).replace("-", "−"), float(value))
    if not isinstance(value, float):
        return Cell(str(value), str(value))
    stderr, low, high, sd = (float(table[column + end].iloc[position]) if column + end in table.columns else math.nan
                             for end in COMPANIONS)
    spread = sd if math.isnan(stderr) else stderr
    return Cell(number(value, spread) if math.isnan(low) else interval(value, low, high), float(value))


def _exponent(value: float) -> int:
    return math.floor(math.log10(value)) if value > 0 else 0


def _plain(value: float, digits: int) -> str:
    text = f"{value:.{digits}g}"
    return (f"{value:.0f}" if "e+" in text else text).replace("-", "−")
