"""ResNet-20 on CIFAR-10: the noise stability beside its parabola, and its ratio to the parabola layer by layer.

Reads out/resnet20_noise (`genmeasure run analysis/resnet20_noise.py --out out/resnet20_noise`).
"""

import numpy as np
import style
from matplotlib.colors import LogNorm

RUN = "out/resnet20_noise"
Z = 1.96
"""Standard errors on each side of a 95 % interval."""


def total(measure, term):
    """sigma, value and stderr with noise in all layers; of several requests the first one's."""
    rows = style.readings(RUN, measure=measure, term=term, layer="total")
    return rows.drop_duplicates("sigma").sort_values("sigma")[["sigma", "value", "stderr"]]


def curve(panel) -> None:
    """2 I(sigma) / sigma^2 with its 95 % interval beside the trace; draws of the papers' way with their spread."""
    stability, taylor = total("noise-stability", "stability"), total("hessian-approximation", "taylor")
    scale = 2 / stability["sigma"] ** 2
    panel.errorbar(stability["sigma"], scale * stability["value"], Z * scale * stability["stderr"], fmt="o-", ms=3,
                   lw=1, color=style.COLOURS[0], label="2 I(σ) / σ²")
    trace = 2 / taylor["sigma"] ** 2
    panel.fill_between(taylor["sigma"], trace * (taylor["value"] - Z * taylor["stderr"]),
                       trace * (taylor["value"] + Z * taylor["stderr"]), color=style.COLOURS[1], alpha=0.3, lw=0)
    panel.plot(taylor["sigma"], trace * taylor["value"], color=style.COLOURS[1], label="tr H")
    spread = style.readings(RUN, measure="noise-stability", term="sd").set_index("sigma").sort_index()
    drawn = style.readings(RUN, measure="noise-stability", term="stability")
    drawn = drawn[drawn["params"].isin(spread["params"])].set_index("sigma").reindex(spread.index)
    at = spread.index.to_numpy() * 1.05
    panel.errorbar(at, 2 / spread.index**2 * drawn["value"], 2 / spread.index**2 * spread["value"], fmt="s", ms=3,
                   lw=0.8, color=style.COLOURS[2], label="20 draws, ± sd of one")
    panel.set(xscale="log", yscale="log", xlabel="σ of the weight noise (weight units)", ylabel="loss / weight²")
    panel.legend()


def layers(figure, panel) -> None:
    """I_i(sigma) over sigma^2/2 Tr H_ii, noise in one layer at a time."""
    parts = []
    for measure, term in (("noise-stability", "stability"), ("hessian-approximation", "taylor")):
        rows = style.readings(RUN, measure=measure, term=term)
        order = [x for x in dict.fromkeys(rows["layer"]) if x != "total"]
        rows = rows[rows["layer"] != "total"]
        parts.append(rows.pivot_table("value", "layer", "sigma").reindex(order))
    ratio = parts[0] / parts[1]
    image = panel.imshow(ratio.to_numpy(), aspect="auto", cmap="RdBu_r", norm=LogNorm(0.25, 4))
    panel.set_yticks(range(len(ratio)), ratio.index, fontsize=6)
    panel.set_xticks(range(len(ratio.columns)), [f"{sigma:g}" for sigma in ratio.columns])
    panel.set_xlabel("σ")
    for (row, column), value in np.ndenumerate(ratio.to_numpy()):
        panel.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=5)
    bar = figure.colorbar(image, ax=panel, label="I(σ) / (½ σ² tr H) of the layer", ticks=[0.25, 0.5, 1, 2, 4])
    bar.ax.set_yticklabels(["¼", "½", "1", "2", "4"])
    bar.ax.minorticks_off()


def main() -> None:
    with style.paper():
        figure, (left, right) = style.canvas(1, 2, width=1.25 * style.FULL, height=3.6)
        curve(left)
        layers(figure, right)
    style.save(figure, "resnet20_noise")


if __name__ == "__main__":
    main()
