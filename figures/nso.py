"""Noise stability optimisation against plain fine-tuning and SAM: error, trace and largest eigenvalue.

Reads out/nso (`genmeasure run analysis/nso.py --out out/nso`).
"""

import comparison
import numpy as np
import pandas as pd
import style

RUN, REFERENCE = "out/nso", "plain, twice as long"
QUANTITIES = {"test error": {"measure": "gap", "term": "error-test"},
              "training loss": {"measure": "gap", "term": "loss-train"},
              "trace": {"measure": "hessian-trace", "layer": "total"},
              "largest eigenvalue": {"measure": "hessian-top", "layer": "total", "term": "largest"}}
FAMILIES = ("plain", "one-sided noise", "label smoothing", "SAM", "NSO", "with weight decay", "with augmentation")


def family_of(method: str) -> str:
    """One of `FAMILIES`."""
    return next(family for family in FAMILIES[::-1] if family.removeprefix("with ") in method)


def draw(panel, table: pd.DataFrame, quantity: str) -> None:
    """Means and intervals of one group, a colour and a marker for each family."""
    for family, colour, marker in zip(FAMILIES, style.COLOURS, style.MARKERS, strict=False):
        part = table[table["method"].map(family_of) == family]
        if part.empty:
            continue
        error, value = ([part[name] - part[f"{name} low"], part[f"{name} high"] - part[name]]
                        for name in ("test error", quantity))
        panel.errorbar(part["test error"], part[quantity], xerr=error, yerr=value, fmt=marker, color=colour, lw=0.8,
                       ms=4, label=family)
    panel.set_yscale("symlog", linthresh=1)  # linear below 1, since a trace may be negative


def main() -> None:
    frame = comparison.checkpoints(style.readings(RUN), QUANTITIES, ["method", "dataset", "noise", "seed"])
    frame["noise"] = frame["dataset"] + ", label noise " + frame["noise"].astype(str)
    for name in ("trace", "largest eigenvalue"):
        positive = frame.groupby(["noise", "method"])[name].transform("min") > 0  # a trace may be negative
        frame[f"log10 {name}"] = np.log10(frame[name].where(positive))
    table = comparison.table(frame, [*QUANTITIES, "log10 trace", "log10 largest eigenvalue"], REFERENCE)
    text = (comparison.markdown(table, {"test error": ".3f", "training loss": ".3f", "trace": ".0f",
                                      "largest eigenvalue": ".1f", f"log10 trace - {REFERENCE}": ".2f",
                                      f"log10 largest eigenvalue - {REFERENCE}": ".2f"}))
    groups = sorted(table["noise"].unique())
    with style.paper():
        figure, panels = style.canvas(2, len(groups), width=1.15 * style.FULL, height=4.4, sharex="col", squeeze=False)
        for row, (quantity, label) in zip(panels, (
                ("trace", "tr H (loss/weight²)"), ("largest eigenvalue", "λ₁ of H (loss/weight²)")), strict=True):
            for panel, group in zip(row, groups, strict=True):
                draw(panel, table[table["noise"] == group], quantity)
            row[0].set_ylabel(label)
        for panel, above, group in zip(panels[-1], panels[0], groups, strict=True):
            panel.set_xlabel("test error (share of examples)")
            above.set_title(group)
        shown = {label: handle for panel in panels[0]
                 for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
        figure.legend(shown.values(), shown, loc="outside upper center", ncols=4)
    style.save(figure, "nso")
    style.write_table(table, text, "nso")


if __name__ == "__main__":
    main()
