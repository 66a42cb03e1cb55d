"""Sentence classification on wrong labels: test error of every method, task by task.

Reads out/text (`genmeasure run analysis/text.py --out out/text`).
"""

import comparison
import style

RUN, REFERENCE = "out/text", "plain"
QUANTITIES = {"test error": {"measure": "gap", "term": "error-test"},
              "training loss": {"measure": "gap", "term": "loss-train"},
              "distance": {"measure": "distance", "layer": "total", "term": "frobenius"}}


def main() -> None:
    frame = comparison.checkpoints(style.readings(RUN), QUANTITIES, ["method", "dataset", "noise", "seed"])
    frame["task"] = frame["dataset"] + ", " + frame["noise"].map("{:.0%} flipped".format)
    table = comparison.table(frame, list(QUANTITIES), REFERENCE, by="task")
    with style.paper():
        figure, panels = style.canvas(1, 2, width=1.15 * style.FULL, height=4.4, sharey=True)
        comparison.forests(panels, table, {
            "test error": "test error (share of examples)", f"test error - {REFERENCE}": "minus plain training"},
            style.COLOURS, style.MARKERS, by="task", name="")
        panels[1].axvline(0, color="0.4", lw=0.8)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    style.save(figure, "text")
    shown = {"test error": ".3f", f"test error - {REFERENCE}": ".3f", "training loss": ".2f", "distance": ".2f"}
    style.write_table(table, comparison.markdown(table, shown, by="task"), "text")


if __name__ == "__main__":
    main()
