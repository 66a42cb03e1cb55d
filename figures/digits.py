"""Digits: the noise stability over its parabola against sigma, and every measure's rank correlation with the gap.

Reads out/digits (`genmeasure run analysis/digits.py --out out/digits`).
"""

import numpy as np
import pandas as pd
import style

RUN = "out/digits"
SHOWN = {
    ("ju2022", "", "", "total"): "Hessian bound (Ju et al. 2022)",
    ("hessian-distance", "", "total", "vHv-mean"): "mean v'Hv",
    ("hessian-distance", "", "total", "vH+v-max"): "max v'H+v",
    ("hessian-trace", "", "total", ""): "Hessian trace",
    ("hessian-top", "", "total", "largest"): "largest eigenvalue",
    ("noise-stability", "", "total", "stability"): "noise stability, σ = 0.005",
    ("distance", "", "total", "frobenius"): "distance from the start",
    ("norm", "", "total", "frobenius"): "norm of the weights",
    ("margin", "", "", "percentile-10"): "margin, 10th percentile",
    ("neyshabur2018", "table", "", "total"): "Neyshabur et al. 2018, table",
    ("li2021", "table", "", "total"): "Li & Zhang 2021, table",
}
SIGMA = 0.005


def curve(panel) -> None:
    """2 I(sigma) / (sigma^2 Tr H): median over checkpoints, with the middle half, by noise level."""
    stability = style.readings(RUN, measure="noise-stability", term="stability")
    trace = style.readings(RUN, measure="hessian-trace", layer="total").set_index("subject")["value"]
    ratio = stability.assign(ratio=2 * stability["value"] / stability["sigma"] ** 2 / stability["subject"].map(trace))
    for (noise, part), colour, line, marker in zip(ratio.groupby("noise"), style.COLOURS, style.LINES, style.MARKERS,
                                                   strict=False):
        at = part.groupby("sigma")["ratio"]
        panel.fill_between(list(at.groups), at.quantile(0.25), at.quantile(0.75), color=colour, alpha=0.2, lw=0)
        panel.plot(list(at.groups), at.median(), color=colour, ls=line, marker=marker, label=f"label noise {noise}")
    panel.axhline(1, color="0.4", lw=0.8)
    panel.set(xscale="log", yscale="log", xlabel="σ of the weight noise (weight units)",
              ylabel="noise stability / (½ σ² tr H)")
    panel.legend()


def ranking(panel) -> None:
    """Kendall's tau with the gap over all checkpoints and within each noise level, with 95 % intervals."""
    table = pd.read_csv(f"{RUN}/correlations.csv", keep_default_na=False, na_values={"sigma": [""]})
    table = table[table["sigma"].isna() | np.isclose(table["sigma"], SIGMA)]
    keys = list(zip(table["measure"], table["variant"], table["layer"], table["term"], strict=True))
    table = table.assign(name=[SHOWN.get(key) for key in keys]).dropna(subset="name")
    names = list(SHOWN.values())[::-1]
    groups = list(dict.fromkeys(table["group"]))
    for offset, (group, colour, marker) in enumerate(zip(groups, style.COLOURS, style.MARKERS, strict=False)):
        part = table[table["group"] == group]
        heights = [names.index(n) + 0.18 * (len(groups) / 2 - offset - 0.5) for n in part["name"]]
        numbers = part[["kendall", "kendall-low", "kendall-high"]].astype(float).to_numpy().T
        panel.errorbar(numbers[0], heights, xerr=[numbers[0] - numbers[1], numbers[2] - numbers[0]], fmt=marker,
                       color=colour, ms=3.5, lw=0.9, label="all checkpoints" if group == "all" else group)
    panel.axvline(0, color="0.4", lw=0.8)
    panel.set_yticks(range(len(names)), names)
    panel.set(xlim=(-1.05, 1.05), xlabel="Kendall's τ-b with the gap")
    panel.legend(loc="upper center", bbox_to_anchor=(0.4, 1.17), ncols=2)


def main() -> None:
    with style.paper():
        figure, (left, right) = style.canvas(1, 2, width=1.25 * style.FULL, height=4.0)
        curve(left)
        ranking(right)
    style.save(figure, "digits")


if __name__ == "__main__":
    main()
