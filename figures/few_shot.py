"""Error on the queries of episodes of few shots, method by method, and differences within episodes.

Reads out/few_shot (`genmeasure run analysis/few_shot.py --out out/few_shot`).
"""

import comparison
import style

RUN, REFERENCE = "out/few_shot", "plain"
QUANTITIES = {"error": {"measure": "gap", "term": "error-test"}, "loss": {"measure": "gap", "term": "loss-test"},
              "training loss": {"measure": "gap", "term": "loss-train"},
              "distance": {"measure": "distance", "layer": "total", "term": "frobenius"}}


def main() -> None:
    frame = comparison.checkpoints(style.readings(RUN), QUANTITIES, ["method", "episode"])
    frame["shots"] = "5 ways, 5 shots"
    table = comparison.table(frame, list(QUANTITIES), REFERENCE, by="shots", pair="episode")
    with style.paper():
        figure, panels = style.canvas(1, 2, width=style.FULL, height=2.0, sharey=True)
        comparison.forests(panels, table, {
            "error": "error on queries (share of examples)", f"error - {REFERENCE}": "minus that of plain fine-tuning"},
            style.COLOURS, style.MARKERS, by="shots", name="")
        panels[1].axvline(0, color="0.4", lw=0.8)
    style.save(figure, "few_shot")
    shown = {"error": ".3f", f"error - {REFERENCE}": ".3f", "loss": ".2f", "training loss": ".3f", "distance": ".2f"}
    style.write_table(table, comparison.markdown(table, shown, by="shots"), "few_shot")


if __name__ == "__main__":
    main()
