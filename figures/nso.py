"""Noise stability optimisation against plain fine-tuning and SAM: error, trace and largest eigenvalue.

Reads out/nso (`genmeasure run analysis/nso.py --out out/nso`).
"""

import comparison
import numpy as np
import style

RUN, REFERENCE = "out/nso", "plain, twice as long"
QUANTITIES = {"test error": {"measure": "gap", "term": "error-test"},
              "training loss": {"measure": "gap", "term": "loss-train"},
              "trace": {"measure": "hessian-trace", "layer": "total"},
              "largest eigenvalue": {"measure": "hessian-top", "layer": "total", "term": "largest"}}
FAMILIES = ("plain", "one-sided noise", "SAM", "NSO", "with weight decay", "with augmentation")


def family_of(method: str) -> str:
    """One of `FAMILIES`."""
    return next(family for family in FAMILIES[::-1] if family.removeprefix("with ") in method)


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
    with style.paper():
        figure, panels = style.canvas(1, 2, width=1.2 * style.FULL, height=3.4, sharex=True)
        for panel, quantity, label in zip(panels, ("trace", "largest eigenvalue"), (
                "Hessian trace (loss/weight²)", "largest eigenvalue (loss/weight²)"), strict=True):
            for family, colour in zip(FAMILIES, style.COLOURS, strict=False):
                rows = table[table["method"].map(family_of) == family]
                for (noise, part), marker in zip(rows.groupby("noise"), style.MARKERS, strict=False):
                    panel.errorbar(part["test error"], part[quantity], fmt=marker, color=colour, lw=0.8, ms=4,
                                   xerr=[part["test error"] - part["test error low"],
                                         part["test error high"] - part["test error"]],
                                   yerr=[part[quantity] - part[f"{quantity} low"],
                                         part[f"{quantity} high"] - part[quantity]],
                                   label=f"{family}, {noise}")
            panel.set(xlabel="test error (share of examples)", ylabel=label)
            panel.set_yscale("symlog", linthresh=1)  # linear below 1, since a trace may be negative
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=6.5)
    style.save(figure, "nso")
    style.write_table(table, text, "nso")


if __name__ == "__main__":
    main()
