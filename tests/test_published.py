"""The bound comparison in the published order."""

import json

import pandas as pd
from readings_factory import readings

from genmeasure import tables
from genmeasure.published import comparison


def row(subject, measure, term, value, kind="measure", variant="", **params):
    found = {"variant": variant} if variant else {}
    return {"subject": subject, "measure": measure, "kind": kind, "term": term, "value": value, "layer": "",
            "params": json.dumps(found | params), "data": "CIFAR10"}


def small():
    rows = []
    for number, subject in enumerate(("a", "b")):
        rows += [row(subject, "ju2022", "total", 0.5 + number), row(subject, "ju2022", "vacuous", 0.0)]
        rows += [row(subject, "gouk2021", "total", float("inf"), "reproduction", "table"),
                 row(subject, "gouk2021", "log10", 400.25, "reproduction", "table"),
                 row(subject, "gouk2021", "vacuous", 1.0, "reproduction", "table"),
                 row(subject, "pacbayes-kl", "total", 0.31, "certificate", "layerwise"),
                 row(subject, "gap", "loss-gap", 0.2), row(subject, "gap", "error-test", 0.1)]
    rows.append(row("a", "pitas2017", "not-defined", 1.0, "reproduction", "table", found={"not defined": "why not"}))
    return pd.DataFrame(rows)


def test_rows_stand_in_the_published_order_with_certificates_and_the_gap_below():
    table = comparison(small()).set_index("bound")
    assert list(table.index) == ["Pitas et al. 2017", "Gouk et al. 2021", "Ju et al. 2022", "pacbayes-kl (layerwise)",
                                 "measured gap of the loss", "measured test error"]
    assert list(table["a"]) == ["not defined: why not", "10^400.2 (vacuous)", "0.5", "0.31", "0.2", "0.1"]
    assert table.loc["Pitas et al. 2017", "b"] == "–"
    assert table.loc["Gouk et al. 2021", "published, cifar-10"] == "2.04×10⁶⁹"
    assert table.loc["pacbayes-kl (layerwise)", "published, cifar-10"] == ""


def test_many_checkpoints_share_a_column():
    table = comparison(readings(failures=False)).set_index("bound")
    assert list(table.columns) == ["kind", "median"]
    assert table.loc["Li & Zhang 2021", "median"].startswith("10^32")


def test_nothing_to_show():
    frame = small()
    assert comparison(frame[frame["measure"] == "gap"]).empty
    assert "published-bounds" not in tables.all_tables(frame[frame["measure"] == "gap"])


def test_the_table_of_bounds_says_why_one_is_not_defined():
    table = tables.bound_comparison(small()).set_index("bound")
    assert table.loc["pitas2017", "not defined"] == "why not"
    assert pd.isna(table.loc["pitas2017", "value"])
    assert table.loc["ju2022", "not defined"] == ""
