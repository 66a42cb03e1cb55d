"""The page: failures first, everything escaped, nothing loaded, the right sentences."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from readings_factory import NASTY, one_subject, readings, write_run

from genmeasure.correlate import correlate
from genmeasure.errors import InputError
from genmeasure.readings import tidy
from genmeasure.report import write_report
from genmeasure.report.summary import sentences


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    return write_report(write_run(tmp_path_factory.mktemp("run"))).read_text(encoding="utf-8")


def test_failures_lead(page):
    body = page[page.index("<body>"):]
    assert "3 readings failed" in body
    assert body.index("readings failed") < body.index("Summary</h2>") < body.index("<figure") < body.index("<table")
    assert body.index("<table") < body.index("Settings, versions, seeds")


def test_user_text_is_escaped(page):
    assert NASTY not in page
    assert "&lt;script&gt;alert" in page
    assert page.count("<script>") == 1


def test_nothing_is_loaded(page):
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "@import" not in page
    assert "url(" not in page
    assert page.count('<img src="data:image/svg+xml;base64,') == page.count("<figure") >= 6


def test_pictures_say_what_they_show(page):
    assert 'alt="56 checkpoints, ju2022 · total against loss-gap: r = 0.' in page


def test_provenance_is_rendered_whole(page):
    for text in ("torch", "2.13.0", "hessian-trace", "abababab", "2 entries"):
        assert text in page


def test_sentences_of_a_study():
    frame = readings()
    text = " ".join(sentences(tidy(frame), correlate(frame, resamples=50)))
    gap = frame.query("measure == 'gap' and term == 'loss-gap' and noise == 0.4")["value"].mean()
    assert "56 checkpoints (7 values of method, 4 values of noise and 2 values of seed)" in text
    assert "3 failed (see above)" in text
    assert re.search(rf"{gap:.3f} ± 0\.\d+ at noise = 0\.4", text)
    assert "Over 56 checkpoints ju2022 correlates with the loss-gap: Pearson r = 0." in text
    assert "larger values go with larger gaps" in text
    assert re.search(r"agree within their 95 % intervals for \d+ % of the checkpoints at σ = 0\.0005, and", text)
    assert "up to σ = 0.0125 (median over checkpoints) and leaves it from σ = 0.02 on." in text
    assert "Below it: ju2022 (" in text


def test_fit_counts_checkpoints_whose_wrong_labels_are_known():
    def gap(subject, term, value):
        return {"subject": subject, "measure": "gap", "term": term, "value": value}
    frame = one_subject()
    known = pd.DataFrame([gap("a", "error-train", 0.1), gap("a", "label-noise", 0.4), gap("b", "error-train", 0.3),
                          gap("b", "label-noise", 0.2), gap("of unknown labels", "error-train", 0.9)])
    text = " ".join(sentences(tidy(pd.concat([frame[frame["measure"] != "gap"], known])), None))
    assert "1 of 2 checkpoints, among those whose wrong labels are known, fit the given training labels" in text
    assert "(largest training error 0.3, where a share of 0.2 of the labels is wrong)" in text


def test_sentences_of_one_checkpoint():
    text = " ".join(sentences(tidy(one_subject()), None))
    assert "1 checkpoint, " in text
    assert "none failed" in text
    assert "The generalization gap of the loss is 0.785 ± 0.020 (training loss 0.22, test loss 1.005)." in text
    assert "need at least three checkpoints" in text


def test_one_checkpoint_says_where_curve_and_parabola_differ():
    frame = one_subject()
    rows = frame["term"] == "relative-difference"
    frame.loc[rows, "stderr"] = 0.01
    frame.loc[rows, "value"] = [0.0 if sigma < 0.01 else 0.5 for sigma in frame.loc[rows, "sigma"]]
    text = " ".join(sentences(tidy(frame), None))
    assert "agree within their 95 % intervals at σ = 0.0005, 0.0008" in text
    assert re.search(r"0\.008 and differ at σ = 0\.0125, .* and 0\.05\.", text)


def test_sentences_where_the_parabola_never_holds_and_the_gap_is_missing():
    frame = one_subject()
    frame = frame[~frame["term"].isin(["valid-from", "valid-to"]) & (frame["measure"] != "gap")]
    text = " ".join(sentences(tidy(frame), None))
    assert "at no sigma of the grid" in text
    assert "The generalization gap was not measured." in text


def test_a_folder_with_readings_only_is_enough(tmp_path):
    one_subject().to_csv(tmp_path / "readings.csv", index=False)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<figure" not in page
    assert 'role="alert"' not in page


def test_a_run_where_everything_failed(tmp_path):
    frame = one_subject().head(1).assign(value=float("nan"), term="", error="boom")
    assert "1 reading failed" in write_report(write_run(tmp_path, frame)).read_text(encoding="utf-8")


def test_bad_folders(tmp_path):
    with pytest.raises(InputError, match=r"run the study first$"):
        write_report(tmp_path)
    one_subject().to_csv(tmp_path / "readings.csv", index=False)
    (tmp_path / "provenance.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"run the study again$"):
        write_report(tmp_path)
