"""Every measure's predictive power for the generalization gap in three settings, and measure against gap.

Reads out/measure_vs_gap_conv, out/measure_vs_gap_resnet and out/measure_vs_gap_text (`genmeasure run
analysis/measure_vs_gap_conv.py --out out/measure_vs_gap_conv`, …), as far as they are there.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import style
from matplotlib.ticker import FixedLocator, NullFormatter

RUNS = {"LeNet → MNIST": "out/measure_vs_gap_conv", "ResNet-20 → Fashion-MNIST": "out/measure_vs_gap_resnet",
        "MiniLM block → MR": "out/measure_vs_gap_text"}
SHOWN = {  # measure, variant, layer, term -> name
    ("hessian-distance", "", "total", "vH+v-max"): "max v'H⁺v, summed over layers",
    ("hessian-distance", "", "total", "vHv-mean"): "mean v'Hv, summed over layers",
    ("ju2022", "", "", "log10"): "ju2022 (C = largest training loss)",
    ("hessian-trace", "", "total", ""): "Hessian trace",
    ("hessian-top", "", "total", "largest"): "largest eigenvalue",
    ("noise-stability", "", "total", "stability"): "noise stability, σ = 0.01",
    ("zhang2024", "mean", "", "log10"): "zhang2024 (√(C tr H) × distance)",
    ("distance", "", "total", "frobenius"): "distance from the start",
    ("jiang2020", "", "", "param-norm"): "norm of the weights",
    ("jiang2020", "", "", "log-prod-of-spec"): "product of spectral norms",
    ("jiang2020", "", "", "path-norm"): "path norm",
    ("jiang2020", "", "", "dist-spec-init"): "spectral distance",
    ("margin", "", "", "percentile-10"): "margin, 10th percentile",
    ("spectral-alpha", "", "total", "alpha"): "spectral α (no data)",
    ("spectral-alpha", "", "total", "weighted-alpha"): "weighted α (no data)",
    ("spectral-alpha", "", "total", "log10-spectral-norm"): "log spectral norm (no data)",
    ("spectral-alpha", "", "total", "stable-rank"): "stable rank (no data)",
    ("gouk2021", "table", "", "log10"): "gouk2021", ("li2021", "table", "", "log10"): "li2021",
    ("long2020", "table", "", "log10"): "long2020", ("neyshabur2018", "table", "", "total"): "neyshabur2018",
    ("pitas2017", "table", "", "total"): "pitas2017", ("arora2018", "table", "", "total"): "arora2018",
    ("bartlett2017", "start", "", "total"): "bartlett2017",
    ("gap", "", "", "loss-train"): "training loss",
    ("baseline", "", "", "oracle"): "oracle", ("baseline", "", "", "anti-oracle"): "anti-oracle",
    ("baseline", "", "", "random"): "random numbers",
}
STATISTICS = {"tau-a": "Kendall τ-a", "granulated": "granulated Kendall", "mutual-information": "CMI (both)",
              "mutual-information-equal": "CMI (equal)", "sign-error-mean": "sign error, mean",
              "sign-error-max": "sign error, largest"}
AGAINST = ("hessian-distance", "vH+v-max")


def power(run: str) -> pd.DataFrame:
    """Predictive power of what is shown, by name; rows that a setting lacks are left out."""
    table = pd.read_csv(f"{run}/predictive_power.csv", keep_default_na=False,
                        na_values={c: [""] for c in ("sigma", *(f"{s}{e}" for s in STATISTICS for e in
                                                                ("", "-low", "-high")))})
    keys = zip(table["measure"], table["variant"], table["layer"], table["term"], strict=True)
    return table.assign(name=[SHOWN.get(key, "") for key in keys]).query("name != ''").set_index("name")


def forest(panel, found: dict[str, pd.DataFrame]) -> None:
    """Granulated coefficient with its 95 % interval, one row per quantity and one colour per setting."""
    names = list(SHOWN.values())[::-1]
    for place, ((setting, table), colour, marker) in enumerate(zip(found.items(), style.COLOURS, style.MARKERS,
                                                                   strict=False)):
        heights = [names.index(n) + 0.24 * ((len(found) - 1) / 2 - place) for n in table.index]
        middle, low, high = (table[f"granulated{end}"].astype(float) for end in ("", "-low", "-high"))
        ends = [np.maximum(middle - low, 0), np.maximum(high - middle, 0)]  # a bootstrap interval may lie beside it
        panel.errorbar(middle, heights, xerr=ends, fmt=marker, color=colour, ms=3.5, lw=0.9, label=setting)
    panel.axvline(0, color="0.4", lw=0.8)
    panel.set_yticks(range(len(names)), names)
    panel.set(xlim=(-1.05, 1.05), ylim=(-0.7, len(names) - 0.3), xlabel="granulated Kendall coefficient with the gap")
    panel.legend(loc="lower center", bbox_to_anchor=(0.3, 1.0), ncols=len(found))


def scatter(panel, run: str, setting: str) -> None:
    """The Hessian distance measure against the gap; colour and marker say the label noise."""
    measure, term = AGAINST
    x = style.readings(run, measure=measure, term=term, layer="total").set_index("subject")
    gap = style.readings(run, measure="gap", term="loss-gap").set_index("subject")["value"]
    for (noise, part), colour, marker in zip(x.groupby("noise"), style.COLOURS[4:], style.MARKERS, strict=False):
        panel.plot(part["value"], gap.reindex(part.index), marker, color=colour, ms=3, ls="",
                   label=f"label noise {noise}")
    panel.set(xscale="log", title=setting, ylabel="gap of the loss")
    panel.xaxis.set_major_locator(FixedLocator([m * 10.0**e for e in range(-6, 7) for m in (1, 2, 5)]))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter(NullFormatter())


def cells(table: pd.DataFrame, name: str) -> list[str]:
    """tau-a, the granulated coefficient with its interval, both mutual informations; and sign errors, if known."""
    if name not in table.index:
        return ["", "", ""]
    row = table.loc[name]
    low, high = (row[f"granulated{end}"] for end in ("-low", "-high"))
    found = [f"{row['tau-a']:.2f}", f"{row['granulated']:.2f} [{low:.2f}, {high:.2f}]",
             f"{row['mutual-information']:.2f} / {row['mutual-information-equal']:.2f}"]
    return [text.replace("-", "−") for text in found]


def text(found: dict[str, pd.DataFrame]) -> str:
    """A Markdown table: three columns a setting, the largest mean of the granulated coefficients first."""
    mean = pd.concat([table["granulated"] for table in found.values()]).groupby(level=0).mean()
    columns = [f"{setting}: τ-a | granulated | CMI both / equal" for setting in found]
    lines = ["| quantity | " + " | ".join(columns) + " |", "|---|" + "---:|---:|---:|" * len(found)]
    for name in mean.sort_values(ascending=False, kind="stable").index:
        lines.append(f"| {name} | " + " | ".join(c for t in found.values() for c in cells(t, name)) + " |")
    counts = [f"{setting}: {int(table['n'].max())} checkpoints, sign errors in "
              f"{int(table['environments'].max())} environments" for setting, table in found.items()]
    return "\n".join([*lines, "", *counts])


def main() -> None:
    runs = {setting: run for setting, run in RUNS.items() if (Path(run) / "predictive_power.csv").is_file()}
    if not runs:
        raise SystemExit("none of the runs of measure_vs_gap is there; run analysis/measure_vs_gap_conv.py first")
    found = {setting: power(run) for setting, run in runs.items()}
    with style.paper():
        figure = style.Figure(figsize=(1.3 * style.FULL, 6.2), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=[1.9, 1])
        forest(left.subplots(), found)
        panels = np.atleast_1d(right.subplots(len(runs), 1))
        for panel, (setting, run) in zip(panels, runs.items(), strict=True):
            scatter(panel, run, setting)
        panels[-1].set_xlabel("Σ max v'H⁺v (loss)")
        panels[0].legend()
    style.save(figure, "measure_vs_gap")
    style.write_table(pd.concat(found, names=["setting"]).reset_index(), text(found), "measure_vs_gap")


if __name__ == "__main__":
    main()
