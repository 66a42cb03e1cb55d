"""By what factor fine-tuning algorithms lower the Hessian distance measure against plain fine-tuning.

Reads out/six_times (`genmeasure run analysis/six_times.py --out out/six_times`).
"""

import comparison
import numpy as np
import pandas as pd
import style

RUN = "out/six_times"
QUANTITIES = {"max": {"measure": "hessian-distance", "layer": "total", "term": "vH+v-max"},
              "mean": {"measure": "hessian-distance", "layer": "total", "term": "vHv-mean"},
              "loss": {"measure": "gap", "term": "loss-train"}, "error": {"measure": "gap", "term": "error-test"},
              "gap": {"measure": "gap", "term": "loss-gap"}}
OURS = "consistent loss + constraint"
LOGS = ("max", "mean")


def by_method() -> pd.DataFrame:
    """Means over seeds and differences from plain fine-tuning; of `LOGS` of their logarithms, so factors."""
    readings = style.readings(RUN)
    frame = comparison.checkpoints(readings, QUANTITIES, ["method", "strength", "noise", "seed"])
    frame["method"] = [", ".join(filter(None, pair)) for pair in zip(frame["method"], frame["strength"], strict=True)]
    for name in LOGS:
        frame[name] = np.log10(frame[name])
    return comparison.table(frame, list(QUANTITIES), "plain")


def factor(row: pd.Series, name: str) -> tuple[float, float, float]:
    """By what factor plain fine-tuning's is larger, with its 95 % interval."""
    return tuple(10 ** -row[f"{name} - plain{end}"] for end in ("", " high", " low"))


def draw(panel, table: pd.DataFrame, name: str) -> None:
    methods = list(dict.fromkeys(table["method"]))[::-1]
    for place, ((noise, part), colour, marker) in enumerate(zip(table.groupby("noise"), style.COLOURS, style.MARKERS,
                                                                strict=False)):
        middle, low, high = np.array([factor(row, name) for _, row in part.iterrows()]).T
        heights = [methods.index(m) - 0.2 * (place - 0.5) for m in part["method"]]
        panel.errorbar(middle, heights, xerr=[middle - low, high - middle], fmt=marker, color=colour, ms=4, lw=1,
                       label=f"label noise {noise}")
    panel.axvline(1, color="0.4", lw=0.8)
    panel.set_yticks(range(len(methods)), methods)
    panel.set(xscale="log", xlabel=f"plain / method, Σ {name} of " + ("v'H⁺v" if name == "max" else "v'Hv"))


def text(table: pd.DataFrame) -> str:
    lines = ["| noise | method | reduction of Σ max v'H⁺v | reduction of Σ mean v'Hv | training loss | gap of the loss "
             "| test error |", "|---|---|---:|---:|---:|---:|---:|"]
    for _, row in table.iterrows():
        cells = ["{:.2f} [{:.2f}, {:.2f}]".format(*factor(row, name)) for name in LOGS]
        cells += [f"{row['loss']:.2f}", f"{row['gap']:.2f}",
                  f"{row['error']:.3f} [{row['error low']:.3f}, {row['error high']:.3f}]"]
        lines.append(f"| {row['noise']} | {row['method']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    table = by_method()
    with style.paper():
        figure, panels = style.canvas(1, 2, width=1.25 * style.FULL, height=4.2, sharey=True)
        for panel, name in zip(panels, LOGS, strict=True):
            draw(panel, table, name)
        panels[0].legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    style.save(figure, "six_times")
    style.write_table(table, text(table), "six_times")


if __name__ == "__main__":
    main()
