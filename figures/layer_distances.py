"""Relative distance of every layer against its number, and the rank correlation of the two.

Reads out/layer_distances (`genmeasure run analysis/layer_distances.py --out out/layer_distances`).
"""

import comparison
import numpy as np
import pandas as pd
import style
from scipy import stats

RUN = "out/layer_distances"
SHOWN = {("plain", "pretrained"): "pretrained, Adam", ("sgd", "pretrained"): "pretrained, SGD",
         ("plain", "adversarially pretrained"): "adversarially pretrained, Adam", ("plain", "random"): "random, Adam"}
"""Variant and start, and what they are called here."""
SIDEWAYS, HEAD = "downsample", "head"
"""Shortcuts lie beside the layers that are counted; the head starts anew."""


def distances() -> pd.DataFrame:
    """One row for every checkpoint and layer in the order in which they run, with its number from 1."""
    rows = style.readings(RUN, measure="distance", term="relative")
    rows = rows[~rows["layer"].str.contains(f"{SIDEWAYS}|{HEAD}")]
    rows = rows.assign(number=rows.groupby("subject").cumcount() + 1)
    rows["method"] = [SHOWN.get(key) for key in zip(rows["method"], rows["start"], strict=True)]
    return rows.dropna(subset="method")


def correlations(rows: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rho of distance and layer number for every checkpoint, and how much the last third of the layers
    moved against the first third."""
    found = []
    for (target, method, seed), part in rows.groupby(["dataset", "method", "seed"]):
        third = len(part) // 3
        found.append({"dataset": target, "method": method, "seed": seed,
                      "Spearman": stats.spearmanr(part["number"], part["value"]).statistic,
                      "last over first third": part["value"].iloc[-third:].mean() / part["value"].iloc[:third].mean()})
    return pd.DataFrame(found)


def main() -> None:
    rows = distances()
    found = correlations(rows)
    table = comparison.table(found, ["Spearman", "last over first third"], found["method"].iloc[0], by="dataset")
    with style.paper():
        figure, panels = style.canvas(1, rows["dataset"].nunique(), width=style.FULL, height=2.8, sharey=True,
                                      squeeze=False)
        for panel, (target, part) in zip(panels[0], rows.groupby("dataset"), strict=True):
            for name, colour, line, marker in zip(SHOWN.values(), style.COLOURS, style.LINES, style.MARKERS,
                                                  strict=False):
                wide = part[part["method"] == name].pivot_table("value", "seed", "number")
                if wide.empty:
                    continue
                ends = np.array([comparison.interval(wide[n]) for n in wide.columns]).T
                panel.fill_between(wide.columns, ends[1], ends[2], color=colour, alpha=0.15, lw=0)
                panel.plot(wide.columns, ends[0], color=colour, ls=line, marker=marker, ms=3, label=name)
            panel.set(xlabel="layer", title=target, yscale="log", xticks=range(1, wide.columns.max() + 1, 3))
        panels[0][0].set_ylabel("‖W − W(start)‖ / ‖W(start)‖")
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=7)
    style.save(figure, "layer_distances")
    style.write_table(table, comparison.markdown(table, {"Spearman": ".2f", "last over first third": ".2f"},
                                                 by="dataset"), "layer_distances")


if __name__ == "__main__":
    main()
