"""Training loss with noise on the weights, from three starts.

Reads out/three_starts (`genmeasure run analysis/three_starts.py --out out/three_starts`).
"""

import comparison
import style

RUN, REFERENCE = "out/three_starts", "pretrained"
SIGMAS = (1e-4, 1e-3, 1e-2)


def main() -> None:
    readings = style.readings(RUN)
    quantities = {"training loss": {"measure": "gap", "term": "loss-train"},
                  "test error": {"measure": "gap", "term": "error-test"}}
    for sigma in SIGMAS:
        at = readings["sigma"] == sigma
        for term, name in (("perturbed-loss", "loss"), ("stability", "increase")):
            readings.loc[at & (readings["term"] == term), "term"] = f"{name} at {sigma:g}"
            quantities[f"{name} at {sigma:g}"] = {"measure": "noise-stability", "term": f"{name} at {sigma:g}"}
    frame = comparison.checkpoints(readings, quantities, ["start", "dataset", "seed"]).rename(
        columns={"start": "method"})
    frame["increase / training loss"] = frame["increase at 0.01"] / frame["training loss"]
    names = [*quantities, "increase / training loss"]
    table = comparison.table(frame, names, REFERENCE, by="dataset")
    with style.paper():
        figure, panels = style.canvas(1, 3, width=1.25 * style.FULL, height=2.0, sharey=True)
        comparison.forests(panels, table, {
            "training loss": "training loss", "loss at 0.01": "with noise, σ = 0.01",
            "increase at 0.01": "increase by noise, σ = 0.01"}, style.COLOURS, style.MARKERS, by="dataset", name="")
        for panel in panels:
            panel.set_xscale("log")
        panels[0].legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    style.save(figure, "three_starts")
    shown = {**dict.fromkeys(names, ".3g"), f"increase at 0.01 - {REFERENCE}": ".3g"}
    style.write_table(table, comparison.markdown(table, shown, by="dataset"), "three_starts")


if __name__ == "__main__":
    main()
