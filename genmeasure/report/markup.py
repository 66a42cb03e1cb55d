"""Tables as Markdown and LaTeX, with both languages' special characters escaped."""

from __future__ import annotations

import re

import pandas as pd

from genmeasure.report.numbers import cells, is_number

_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~#$])")
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "\n": " ", "–": "--", "±": r"$\pm$", "×": r"$\times$", "−": "$-$",
    "∞": r"$\infty$", "·": r"$\cdot$", "σ": r"$\sigma$", "τ": r"$\tau$", "²": "$^{2}$",
}
_POWER = re.compile("×10([⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+)")
_LOWERED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


def markdown(table: pd.DataFrame) -> str:
    """A pipe table; numbers flush right."""
    headers, rows = cells(table)
    lines = [[markdown_text(h) for h in headers], ["--:" if is_number(table, h) else ":--" for h in headers]]
    lines += [[cell.text if isinstance(cell.key, float) else markdown_text(cell.text) for cell in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def markdown_text(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", " ".join(str(text).split()))


def latex(table: pd.DataFrame) -> str:
    """A `tabular` with the rules of the package booktabs."""
    headers, rows = cells(table)
    columns = "".join("r" if is_number(table, h) else "l" for h in headers)
    lines = [[latex_text(h) for h in headers], *([latex_text(cell.text) for cell in row] for row in rows)]
    body = [" & ".join(line) + r" \\" for line in lines]
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule",
                      r"\end{tabular}", ""])


def latex_text(text: str) -> str:
    parts = _POWER.split(str(text))
    escaped = ["".join(_LATEX.get(letter, letter) for letter in part) for part in parts[::2]]
    powers = [rf" $\times 10^{{{power.translate(_LOWERED)}}}$" for power in parts[1::2]]
    return "".join(a + b for a, b in zip(escaped, [*powers, ""], strict=True))
