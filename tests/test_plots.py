"""Figures: what they show, that they can be drawn of anything, and that the same readings give the same bytes."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from readings_factory import CLASSES, LAYERS, one_subject, readings

from genmeasure import plots
from genmeasure.errors import InputError


@pytest.fixture(scope="module")
def study() -> pd.DataFrame:
    return readings(methods=["plain", "sam", "mixup"], seeds=[0])


def test_one_subject_has_the_plots_that_need_one(tmp_path):
    before = dict(matplotlib.rcParams)
    written = plots.write_plots(one_subject(), tmp_path, classes=CLASSES)
    assert [p.name for p in written] == ["hessian-against-noise.png", "hessian-against-noise.svg",
                                         "layer-distances.png", "layer-distances.svg", "bounds.png", "bounds.svg"]
    assert dict(matplotlib.rcParams) == before
    assert written[0].read_bytes()[:4] == b"\x89PNG"


def test_many_subjects_and_the_same_bytes_twice(study, tmp_path):
    first = plots.write_plots(study, tmp_path / "a")
    again = plots.write_plots(study, tmp_path / "b")
    assert {"gap-against-ju2022.svg", "gap-against-hessian-trace.svg"} <= {p.name for p in first}
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    text = (tmp_path / "a" / "gap-against-ju2022.svg").read_text(encoding="utf-8")
    assert "<dc:date>" not in text
    assert "12 checkpoints, ju2022 · total against loss-gap" in text


def test_hessian_against_noise_shows_curve_parabola_range_and_plateau(study):
    drawn = plots.hessian_against_noise(study, by="noise", classes=CLASSES)
    upper, lower = drawn.axes[:4], drawn.axes[4:]
    assert [panel.get_title(loc="left") for panel in upper] == ["noise = 0", "noise = 0.2", "noise = 0.4",
                                                                "noise = 0.6"]
    assert {panel.get_xscale() for panel in drawn.axes} == {"log"}
    labels = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert labels == ["measured", "loss > 0.8 log k", "½ σ² tr H", "σ² tr H (published)", "< 10 % apart"]
    ratio = next(line for line in lower[0].lines if line.get_label() == "measured").get_ydata()
    assert np.abs(ratio[:5] - 1).max() < 0.05


def test_negative_stability_and_missing_parabola_can_be_drawn(tmp_path):
    frame = one_subject()
    negative = (frame["measure"] == "noise-stability") & (frame["term"] == "stability") & (frame["sigma"] < 0.001)
    frame = frame.assign(value=frame["value"].mask(negative, -1e-4))
    frame = frame[frame["measure"] != "hessian-approximation"]
    assert plots.write_plots(frame, tmp_path)


def test_layers_stand_in_execution_order(study):
    drawn = plots.layer_distances(study, by="method")
    assert [label.get_text() for label in drawn.axes[0].get_xticklabels()] == list(LAYERS)
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["plain", "sam", "mixup"]


def test_many_layers_are_thinned():
    rows = [{"subject": "s", "measure": "distance", "term": "relative", "layer": f"layer{k}", "value": k}
            for k in range(60)]
    labels = plots.layer_distances(pd.DataFrame(rows)).axes[0].get_xticklabels()
    assert [label.get_text() for label in labels][:2] == ["layer0", "layer3"]


def test_measure_against_gap_is_logarithmic_for_wide_ranges(study):
    assert plots.measure_against_gap(study, "norm", term="product", layer="total").axes[0].get_xscale() == "log"
    drawn = plots.measure_against_gap(study, "hessian-trace", layer="total", colour=None, marker="absent")
    assert drawn.axes[0].get_xscale() == "linear"
    assert not drawn.legends
    assert drawn.axes[0].get_title(loc="left").startswith("r = 0.")
    flat = plots.measure_against_gap(study, "norm", term="constant")
    assert flat.axes[0].get_title(loc="left").startswith("r = 0.00 [0.00, 0.00]")


def test_bounds_place_what_overflows(study):
    panel = plots.bound_comparison(study).axes[-1]
    names = [label.get_text() for label in panel.get_yticklabels()]
    assert names[:2] == ["measured gap", "measured test loss"]
    assert names[-1] == "li2021 (table)"
    assert panel.get_xlim()[1] > 320


def test_bounds_of_the_error_and_of_the_loss_stand_apart(study):
    drawn = plots.bound_comparison(study)
    of = {panel.get_xlabel().partition(":")[0]: {label.get_text() for label in panel.get_yticklabels()}
          for panel in drawn.axes}
    assert of == {
        "bounds of the 0-1 error": {"measured gap", "measured test error", "neyshabur2018 (table)",
                                    "neyshabur2018 (theorem)"},
        "bounds of the loss": {"measured gap", "measured test loss", "ju2022", "li2021 (table)", "li2021 (theorem)"}}
    only = plots.bound_comparison(study[study["measure"].isin(["gap", "ju2022"])])
    assert [panel.get_xlabel().partition(":")[0] for panel in only.axes] == ["bounds of the loss"]


@pytest.mark.parametrize(("draw", "words"), [
    (lambda f: plots.hessian_against_noise(f[f["measure"] == "gap"]), "add it to the measures"),
    (lambda f: plots.layer_distances(f[f["measure"] == "gap"]), "add it to the measures"),
    (lambda f: plots.noise_curves(f[f["measure"] == "gap"]), "add it to the measures"),
    (lambda f: plots.layer_noise_stability(f), "add it to the measures"),
    (lambda f: plots.bound_comparison(f[f["measure"] == "gap"]), "add a bound to the measures"),
    (lambda f: plots.measure_against_gap(f, "nothing"), "measure more checkpoints"),
    (lambda f: plots.layer_distances(f, by="metod"), r"did you mean 'method'\?"),
])
def test_bad_input(draw, words, study):
    with pytest.raises(InputError, match=f"{words}$"):
        draw(study)


def test_nothing_to_plot_writes_nothing(tmp_path):
    frame = pd.DataFrame([{"subject": "a", "measure": "gap", "value": np.nan, "error": "boom"}])
    assert plots.write_plots(frame, tmp_path) == []


def test_many_checkpoints_stand_in_one_figure_of_curves(study):
    drawn = plots.noise_curves(study, by="noise")
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["0", "0.2", "0.4", "0.6"]
    assert len(drawn.axes[0].lines) == 2 * 12
    named = plots.noise_curves(study[study["noise"] == 0.2])
    assert len(named.legends[0].get_texts()) == 3


def layered() -> pd.DataFrame:
    frame = one_subject()
    total = frame[frame["measure"].isin(["noise-stability", "hessian-approximation"]) & frame["sigma"].notna()]
    return pd.concat([frame, *(total.assign(layer=layer, value=total["value"] / 10) for layer in LAYERS)])


def test_layers_make_a_heat_map_in_execution_order(tmp_path):
    drawn = plots.layer_noise_stability(layered())
    assert [label.get_text() for label in drawn.axes[0].get_yticklabels()] == list(LAYERS)
    curve, ratio = (panel.images[0].get_array() for panel in drawn.axes[:2])
    assert curve.shape == (len(LAYERS), 11)
    assert np.abs(ratio[:, :5] - 1).max() < 0.1
    names = {path.name for path in plots.write_plots(layered(), tmp_path)}
    assert "layer-noise-stability.svg" in names
    alone = layered()
    alone = alone[alone["measure"] == "noise-stability"]
    assert len(plots.layer_noise_stability(alone).axes) == 2  # a panel and its colours
