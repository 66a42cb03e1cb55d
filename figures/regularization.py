"""Test error without a constraint, with one radius for all layers, and with radii that grow with depth.

Reads out/regularization (`genmeasure run analysis/regularization.py --out out/regularization`).
"""

import comparison
import pandas as pd
import style

RUN, REFERENCE = "out/regularization", "constant"
QUANTITIES = {"test error": {"measure": "gap", "term": "error-test"},
              "test loss": {"measure": "gap", "term": "loss-test"},
              "training loss": {"measure": "gap", "term": "loss-train"},
              "distance": {"measure": "distance", "layer": "total", "term": "frobenius"}}


def main() -> None:
    frame = comparison.checkpoints(style.readings(RUN), QUANTITIES, ["method", "dataset", "seed", "radius"])
    frame["run"] = frame["dataset"] + " " + frame["seed"].astype(str)
    everything = pd.concat([frame, frame.assign(dataset="over data sets")])
    table = comparison.table(everything, list(QUANTITIES), REFERENCE, by="dataset", pair="run")
    with style.paper():
        figure, panels = style.canvas(1, 2, width=style.FULL, height=2.6, sharey=True)
        comparison.forests(panels, table, {
            "test error": "test error (share of examples)",
            f"test error - {REFERENCE}": "test error minus that of one radius for all"}, style.COLOURS, style.MARKERS,
            by="dataset", name="")
        panels[1].axvline(0, color="0.4", lw=0.8)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    style.save(figure, "regularization")
    shown = {"test error": ".3f", f"test error - {REFERENCE}": ".3f", "test loss": ".2f", "training loss": ".3f",
             "distance": ".2f"}
    style.write_table(table, comparison.markdown(table, shown, by="dataset"), "regularization")


if __name__ == "__main__":
    main()
