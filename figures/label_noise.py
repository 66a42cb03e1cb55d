"""Fine-tuning on wrong labels: test error and Hessian trace of every algorithm.

Reads out/label_noise (`genmeasure run analysis/label_noise.py --out out/label_noise`).
"""

import comparison
import style

RUN, REFERENCE = "out/label_noise", "plain"
QUANTITIES = {"test error": {"measure": "gap", "term": "error-test"},
              "distance": {"measure": "distance", "layer": "total", "term": "frobenius"},
              "trace": {"measure": "hessian-trace", "layer": "total"}}


def main() -> None:
    frame = comparison.checkpoints(style.readings(RUN), QUANTITIES, ["method", "noise", "seed"])
    table = comparison.table(frame, list(QUANTITIES), REFERENCE)
    text = (comparison.markdown(table, {"test error": ".3f", f"test error - {REFERENCE}": ".3f", "distance": ".2f",
                                      "trace": ".0f"}))
    with style.paper():
        figure, panels = style.canvas(1, 2, width=1.15 * style.FULL, height=3.4, sharey=True)
        comparison.forests(panels, table, {
            "test error": "test error (share of examples)", "trace": "Hessian trace (loss/weight²)"},
            style.COLOURS, style.MARKERS)
        panels[0].legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    style.save(figure, "label_noise")
    style.write_table(table, text, "label_noise")


if __name__ == "__main__":
    main()
