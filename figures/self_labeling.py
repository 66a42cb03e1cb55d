"""Self-labeling and its halves: test error, precision of corrected labels, weights of right and wrong labels.

Reads out/self_labeling (`genmeasure run analysis/self_labeling.py --out out/self_labeling`).
"""

import comparison
import pandas as pd
import style

RUN, REFERENCE = "out/self_labeling", "both"
LABELS = ["method", "noise", "seed", "corrected", "precision", "weight-right", "weight-wrong"]
QUANTITIES = {"test error": {"measure": "gap", "term": "error-test"}}
SHOWN = {"test error": ".3f", "precision": ".3f", "weight-right": ".2f", "weight-wrong": ".2f"}


def main() -> None:
    frame = comparison.checkpoints(style.readings(RUN), QUANTITIES, LABELS)
    for name in LABELS[3:]:
        frame[name] = pd.to_numeric(frame[name].replace("", None))  # nothing corrected has no precision
    table = comparison.table(frame, [*QUANTITIES, *LABELS[3:]], REFERENCE)
    difference = f"test error - {REFERENCE}"
    text = (comparison.markdown(table, {**SHOWN, difference: ".3f"}))
    with style.paper():
        figure, panels = style.canvas(1, 3, width=1.3 * style.FULL, height=3.0, sharey=True)
        comparison.forests(panels, table, {
            "test error": "test error (share of examples)", "precision": "corrections that are right",
            "weight-wrong": "weight of wrong labels"}, style.COLOURS, style.MARKERS)
        panels[0].legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=1)
    style.save(figure, "self_labeling")
    style.write_table(table, text, "self_labeling")


if __name__ == "__main__":
    main()
