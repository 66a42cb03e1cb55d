"""The published table of noise stability and Hessian approximation, for networks of the data pack.

Reads out/noise_stability_vs_hessian (`genmeasure run analysis/noise_stability_vs_hessian.py --out
out/noise_stability_vs_hessian`).
"""

import numpy as np
import pandas as pd
import style

RUN = "out/noise_stability_vs_hessian"
Z = 1.96
"""Standard errors on each side of a 95 % interval."""


def numbers() -> pd.DataFrame:
    """One row per model and sigma: draws with their spread, the antithetic curve, and both approximations."""
    readings = style.readings(RUN)
    stability = readings[(readings["measure"] == "noise-stability") & (readings["layer"] == "total")]
    drawn = stability["params"].str.contains('"one_sided": true')
    wanted = {"drawn": stability[drawn & (stability["term"] == "stability")],
              "sd": stability[drawn & (stability["term"] == "sd")],
              "stability": stability[~drawn & (stability["term"] == "stability")],
              "taylor": style.readings(RUN, measure="hessian-approximation", term="taylor", layer="total"),
              "paper": style.readings(RUN, measure="hessian-approximation", term="paper", layer="total")}
    columns = {}
    for name, rows in wanted.items():
        at = rows.set_index(["model", "sigma"])
        columns |= {name: at["value"], f"{name} stderr": at["stderr"]}
    return pd.DataFrame(columns).reset_index()


def residual(part: pd.DataFrame, of: str, approximation: str) -> float:
    """Sum of squared differences over the sum of squares."""
    part = part.dropna(subset=[of, approximation])
    return ((part[of] - part[approximation]) ** 2).sum() / (part[of] ** 2).sum()


def draw(panel, part: pd.DataFrame, model: str) -> None:
    part = part.sort_values("sigma")
    known = part.dropna(subset=["drawn"])
    panel.errorbar(known["sigma"] * 1.02, known["drawn"], known["sd"], fmt="s", ms=2.5, lw=0.8, color=style.COLOURS[2],
                   label="20 draws, ± sd of one")
    panel.errorbar(part["sigma"], part["stability"], Z * part["stability stderr"], fmt="o-", ms=3, lw=1,
                   color=style.COLOURS[0], label="noise stability")
    panel.plot(part["sigma"], part["taylor"], "-", color=style.COLOURS[1], label="½ σ² tr H")
    panel.plot(part["sigma"], part["paper"], "--", color=style.COLOURS[3], label="σ² tr H")
    panel.set(xscale="log", yscale="log", title=model.replace(", ", ",\n"), xlabel="σ (weight units)")


def text(table: pd.DataFrame) -> str:
    parts = []
    for model, part in table.groupby("model", sort=False):
        lines = [model, "", "| σ | noise stability, 20 draws ± sd of one | in pairs ± standard error | ½ σ² tr H "
                 "| σ² tr H | relative difference, with ½ |", "|---:|---:|---:|---:|---:|---:|"]
        for _, row in part.sort_values("sigma").iterrows():
            drawn = "" if np.isnan(row["drawn"]) else f"{row['drawn']:.3g} ± {row['sd']:.2g}"
            lines.append(f"| {row['sigma']:g} | {drawn} | {row['stability']:.3g} ± {row['stability stderr']:.1g} | "
                         f"{row['taylor']:.3g} | {row['paper']:.3g} | "
                         f"{(row['stability'] - row['taylor']) / row['stability']:.2f} |")
        known = part.dropna(subset=["drawn"])
        lines.append("")
        lines.append(f"Relative RSS over the published σ, of the draws: {residual(known, 'drawn', 'taylor'):.3f} with "
                     f"the ½, {residual(known, 'drawn', 'paper'):.3f} without.")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main() -> None:
    table = numbers()
    models = list(dict.fromkeys(table["model"]))
    with style.paper():
        figure, panels = style.canvas(1, len(models), width=1.35 * style.FULL, height=2.9, squeeze=False)
        for panel, model in zip(panels[0], models, strict=True):
            draw(panel, table[table["model"] == model], model)
        panels[0, 0].set_ylabel("increase of the training loss")
        panels[0, 0].legend(fontsize=6)
    style.save(figure, "noise_stability_vs_hessian")
    rows = [{"model": m, "relative RSS": residual(known := part.dropna(subset=["drawn"]), "drawn", "taylor"),
             "relative RSS without the half": residual(known, "drawn", "paper")} for m, part in table.groupby("model")]
    style.write_table(table.merge(pd.DataFrame(rows), on="model"), text(table), "noise_stability_vs_hessian")


if __name__ == "__main__":
    main()
