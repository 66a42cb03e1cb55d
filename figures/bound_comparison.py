"""The published bound comparison beside ours: seven rows and further bounds, images and text.

Reads out/bound_comparison (`genmeasure run analysis/bound_comparison.py --out out/bound_comparison`).
"""

import json

import numpy as np
import pandas as pd
import style

RUN = "out/bound_comparison"
ROWS = {  # bound -> name, and published values (arXiv:2206.02659; ResNet-50, BERT-Base)
    "pitas2017": ("Pitas et al. 2017", {"cifar-10": 5.51e10, "cifar-100": 3.13e12}),
    "arora2018": ("Arora et al. 2018", {"cifar-10": 1.62e6, "cifar-100": 9.66e7}),
    "long2020": ("Long & Sedghi 2020", {"cifar-10": 6.30e13, "cifar-100": 8.32e13}),
    "gouk2021": ("Gouk et al. 2021", {"cifar-10": 2.04e69, "cifar-100": 2.72e69}),
    "li2021": ("Li & Zhang 2021", {"cifar-10": 1.63e27, "cifar-100": 1.31e29}),
    "neyshabur2018": ("Neyshabur et al. 2018", {"cifar-10": 3.13e11, "cifar-100": 1.62e13}),
    "ju2022": ("Ju et al. 2022", {"cifar-10": 2.26, "cifar-100": 7.23, "mrpc": 3.83, "sst-2": 9.71}),
    "ju2022-trace": ("Ju et al. 2022, traces", {}), "zhang2024": ("Zhang et al. 2024", {}),
    "bartlett2017": ("Bartlett et al. 2017", {}), "hold-out": ("hold-out (certificate of the error)", {})}
PUBLISHED = ("cifar-10", "cifar-100", "mrpc", "sst-2")


def found() -> pd.DataFrame:
    """[bound, data]: log10 of the bound, inf where it is infinite, nan where it has no expression; and why not."""
    frame = style.readings(RUN)
    frame = frame[frame["measure"].isin(ROWS)]
    total = frame[frame["term"].isin(["total", "not-defined"])]
    log = frame[frame["term"] == "log10"].set_index(["measure", "data"])["value"]
    rows = []
    for row in total.itertuples():
        known = log.get((row.measure, row.data), np.nan)
        value = np.nan if row.term == "not-defined" else known if not np.isnan(known) else np.log10(row.value)
        why = json.loads(row.params)["found"]["not defined"] if row.term == "not-defined" else ""
        rows.append({"bound": row.measure, "data": row.data, "log10": value, "stderr": row.stderr, "not defined": why})
    return pd.DataFrame(rows)


def number(log: float) -> str:
    if np.isinf(log):
        return "∞"
    return f"{10 ** log:.3g}" if log < 5 else f"{10 ** (log % 1):.1f}·10^{int(log // 1)}"


def draw(panel, table: pd.DataFrame) -> None:
    names = [name for name, _ in ROWS.values()][::-1]
    for place, (data, colour, marker) in enumerate(zip(dict.fromkeys(table["data"]), style.COLOURS, style.MARKERS,
                                                       strict=False)):
        part = table[(table["data"] == data) & np.isfinite(table["log10"])]
        heights = [names.index(ROWS[b][0]) + 0.15 * (1.5 - place) for b in part["bound"]]
        panel.plot(part["log10"], heights, marker, color=colour, label=f"here: {data}", ls="")
    for data, marker in zip(PUBLISHED, style.MARKERS[::-1], strict=False):
        values = [(names.index(name), np.log10(known[data])) for name, known in ROWS.values() if data in known]
        panel.plot([v for _, v in values], [h - 0.33 for h, _ in values], marker, mfc="none", color="0.35",
                   label=f"published: {data}", ls="")
    panel.axvline(0, color="0.6", lw=0.8)
    panel.set_yticks(range(len(names)), names)
    panel.set(xlabel="log10 of the bound", xscale="symlog")
    low, high = panel.get_xlim()
    panel.set_xlim(low, 1.5 * high)  # the margins of this scale are too narrow for a marker
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def text(table: pd.DataFrame) -> str:
    columns = list(dict.fromkeys(table["data"]))
    lines = ["| bound | " + " | ".join(f"here, {c}" for c in columns) + " | "
             + " | ".join(f"published, {c}" for c in PUBLISHED) + " |", "|---|" + "---:|" * (len(columns) + 4)]
    at = table.set_index(["bound", "data"])
    for bound, (name, known) in ROWS.items():
        cells = []
        for data in columns:
            row = at.loc[(bound, data)] if (bound, data) in at.index else None
            cells.append("" if row is None else "not defined" if row["not defined"] else number(row["log10"]))
        lines.append(f"| {name} | " + " | ".join(cells) + " | "
                     + " | ".join(f"{known[c]:.3g}" if c in known else "/" for c in PUBLISHED) + " |")
    gaps = style.readings(RUN, measure="gap")
    for term, name in (("loss-train", "training loss"), ("loss-gap", "gap of the loss"), ("error-test", "test error")):
        rows = gaps[gaps["term"] == term].set_index("data")
        cells = [f"{rows['value'][c]:.3f}" + (f" ± {rows['stderr'][c]:.3f}" if rows["stderr"][c] else "")
                 for c in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " | " + " | ".join("" for _ in PUBLISHED) + " |")
    return "\n".join(lines)


def main() -> None:
    table = found()
    with style.paper():
        figure, panel = style.canvas(width=1.2 * style.FULL, height=3.8)
        draw(panel, table)
    style.save(figure, "bound_comparison")
    style.write_table(table, text(table), "bound_comparison")


if __name__ == "__main__":
    main()
