"""A run folder as one self-contained page."""

from __future__ import annotations

import base64
import html
import json
import math
import re
from importlib.resources import files
from pathlib import Path

import pandas as pd
from jinja2 import Environment, StrictUndefined

from genmeasure.errors import InputError
from genmeasure.readings import read, tidy
from genmeasure.report.numbers import COMPANIONS, Cell, cells, is_number
from genmeasure.report.summary import failures, sentences

TABLES = {
    "bounds": ("Bounds", "Total of each bound: for several checkpoints the median with its range. Vacuous is the share "
                         "of checkpoints for which the bound says nothing. A measure or reproduction certifies "
                         "nothing."),
    "published-bounds": ("Bounds in the order of the published table",
                         "The seven rows of Ju, Li & Zhang (2022) and the certificates beside the measured gap. A "
                         "certificate bounds the 0-1 error, of the classifier that its reading names. Published rows "
                         "are reconstructed formulas."),
    "noise-stability": ("Noise stability and its Hessian approximation",
                        "Value ± standard error; over several checkpoints means, with the standard error between "
                        "checkpoints. taylor = σ²/2 · tr H, paper = σ² · tr H. valid: less than 10 % apart."),
    "hessian-validity": ("Where the Hessian approximation holds",
                         "Relative residual sum of squares over the sigmas, and the sigmas between which curve and "
                         "parabola are less than 10 % apart (median over checkpoints)."),
    "noise-stability-published": ("Noise stability as the papers print it",
                                  "Mean ± standard deviation of one draw, one-sided; beside it σ²/2 · tr H, "
                                  "σ² · tr H (paper), and the relative residual sum of squares over all σ."),
    "noise-stability-layers": ("Noise stability layer by layer",
                               "Noise in one layer at a time. Value ± standard error; taylor = σ²/2 · tr H of the "
                               "layer's block."),
    "correlations": ("Correlation with the generalization gap",
                     "Coefficient [95 % bootstrap interval over checkpoints]; positive: the larger the quantity, the "
                     "larger the gap. Kendall is tau-b. All quantities stand in correlations.csv."),
    "predictive-power": ("Predictive power over the settings",
                         "Kendall's tau-a over all pairs; granulated: its mean over the pairs that differ in one "
                         "setting alone (psi: by setting); mutual information of the two orders given the settings, "
                         "blind to the sign; sign error: share of pairs ranked wrongly, over environments (pairs of "
                         "settings that differ in one). [95 % bootstrap interval over checkpoints]. Baselines say what "
                         "is possible: the gap itself (oracle), with noise, its negative, random numbers."),
    "checkpoints": ("Checkpoints", "One row per checkpoint, value ± standard error."),
}
AGAINST = ("Each point is a checkpoint. Line: least squares; band and brackets: 95 % bootstrap intervals over "
           "checkpoints.")
PLOTS = {
    "hessian-against-noise": "Noise stability and its Hessian approximation. Bands and bars are 95 % intervals; grey: "
                             "less than 10 % apart; hollow: near the loss of a random guess.",
    "noise-curves": "Noise stability of every checkpoint with its 95 % band; dashed: σ²/2 · tr H.",
    "layer-noise-stability": "Noise stability with noise in one layer at a time, layers in execution order. Right: "
                             "over σ²/2 · tr H of the layer's block; white where they agree.",
    "gap-against-ju2022": AGAINST,
    "gap-against-": AGAINST,
    "layer-distances": "Distance from the start, layer by layer; bars are 95 % intervals over checkpoints.",
    "hessian-density": "Density of the Hessian's eigenvalues, smoothed; bands are 95 % intervals over probes.",
    "gauss-newton-density": "Density of the Gauss-Newton matrix's eigenvalues, smoothed; bands are 95 % intervals over "
                            "probes.",
    "bounds": "Bounds: median over checkpoints with range, beside the measured gap. The dashed line marks 1.",
}
MEDIA = {".svg": "image/svg+xml", ".png": "image/png"}


def summary(folder: Path) -> list[str]:
    """What a run folder's readings and correlations say, in sentences."""
    correlations = folder / "correlations.csv"
    return sentences(tidy(read(folder / "readings.csv")), _table(correlations) if correlations.is_file() else None)


def write_report(folder: Path) -> Path:
    """Write `report.html` from what lies in a run folder; returns its path.

    Read are `readings.csv` (needed), `correlations.csv`, `provenance.json`, `tables/*.csv` and `plots/*.svg|png`.
    The page loads nothing: styles, script and pictures are inside. Raises `InputError` for a missing or broken file.
    """
    folder = Path(folder)
    frame = tidy(read(folder / "readings.csv"))
    template = files("genmeasure.report").joinpath("template.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["key"] = sort_key
    page = environment.from_string(template).render(
        title=_listed(frame["study"]) or "Audit",
        failures=failures(frame),
        sentences=summary(folder),
        plots=[plot(path) for path in _ordered(_pictures(folder / "plots"), PLOTS)],
        tables=[table(path) for path in _ordered((folder / "tables").glob("*.csv"), TABLES)],
        provenance=_provenance(folder / "provenance.json"),
    )
    written = folder / "report.html"
    written.write_text(page, encoding="utf-8", newline="\n")
    return written


def plot(path: Path) -> dict[str, str]:
    """Source, text for those who cannot see it, and caption of a picture."""
    content = path.read_bytes()
    described = re.search(rb"<dc:description>(.*?)</dc:description>", content, re.DOTALL)
    caption = next((text for name, text in PLOTS.items() if path.stem.startswith(name)), path.stem.replace("-", " "))
    return {"name": path.stem, "caption": caption,
            "alt": html.unescape(described[1].decode()) if described else caption,
            "source": f"data:{MEDIA[path.suffix]};base64,{base64.b64encode(content).decode()}"}


def table(path: Path) -> dict:
    """Title, caption, headers and cells of a table."""
    frame = _table(path)
    headers, rows = cells(frame)
    title, caption = TABLES.get(path.stem, (path.stem.replace("-", " ").capitalize(), ""))
    return {"name": path.stem, "title": title, "caption": caption, "rows": rows,
            "headers": [(header, is_number(frame, header)) for header in headers]}


def sort_key(cell: Cell) -> str:
    """A cell's key in a form that JavaScript's Number reads; empty where missing."""
    if isinstance(cell.key, str):
        return cell.key
    return repr(cell.key) if math.isfinite(cell.key) else "Infinity" if cell.key > 0 else "-Infinity"


def _table(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    except pd.errors.EmptyDataError:
        raise InputError(f"{path} is empty; expected a table with a header; write the run's tables again") from None
    # An empty column comes back as numbers; it is text unless it belongs to another column.
    text = [c for c in frame.columns if not c.endswith(COMPANIONS)
            and (frame[c].isna().all() or frame[c].dtype.kind not in "biuf")]
    return frame.assign(**{c: frame[c].astype(object).where(frame[c].notna(), "") for c in text})


def _pictures(folder: Path) -> list[Path]:
    """One file per picture, SVG before PNG."""
    found = {path.stem: path for ending in (".png", ".svg") for path in folder.glob(f"*{ending}")}
    return list(found.values())


def _ordered(paths, known: dict) -> list[Path]:
    names = list(known)

    def rank(path: Path) -> tuple[int, str]:
        return next((i for i, name in enumerate(names) if path.stem.startswith(name)), len(names)), path.stem
    return sorted(paths, key=rank)


def _provenance(path: Path) -> object:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise InputError(f"{path} is no JSON ({problem}); expected what the run wrote; run the study again") from None


def _listed(values: pd.Series) -> str:
    return ", ".join(dict.fromkeys(value for value in values if value))
