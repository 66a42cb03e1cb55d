"""The recipe of analysis/certificates.py on the digits of MNIST, from the data pack."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest

import genmeasure as gm
from genmeasure import published
from genmeasure.data import manifest
from genmeasure.errors import InputError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def readings(tmp_path_factory):
    """Of MNIST: the six norm-based rows, the seventh, the gap, and the certificates by compression and hold-out."""
    path = Path(__file__).parents[2] / "analysis" / "certificates.py"
    specification = importlib.util.spec_from_file_location("certificates", path)
    study = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(study)
    try:
        manifest.path(study.START)
    except InputError:
        pytest.skip("the data pack is not there; set GENMEASURE_DATA to its folder")
    study.FOLDER = tmp_path_factory.mktemp("checkpoints")
    study.DATA = {"mnist": study.DATA["mnist"]}
    (files,) = study.SUBJECTS()
    subject = files.load()
    return pd.concat([gm.measure(subject, r.name, **r.parameters) for r in study.REQUESTS if r.name != "pacbayes-kl"])


def total(readings, name, variant):
    rows = readings[(readings["measure"] == name) & readings["params"].str.contains(f'"variant": "{variant}"')]
    return rows.set_index("term")["value"]["total"], set(rows["kind"])


def test_the_compressed_network_is_certified_below_one_half(readings):
    value, kind = total(readings, "lotfi2022", "kl")
    assert value < 0.5
    assert kind == {"certificate"}
    assert total(readings, "hold-out", "binomial")[0] < value


@pytest.mark.parametrize("name", ["pitas2017", "arora2018", "long2020", "gouk2021", "li2021", "neyshabur2018"])
def test_norm_bounds_are_larger_by_orders_of_magnitude(readings, name):
    assert total(readings, name, "table")[0] > 100 * total(readings, "lotfi2022", "kl")[0]


def test_the_table_shows_it_beside_the_seven_rows(readings):
    table = published.comparison(readings)
    assert list(table["bound"])[:7] == [name for name, _ in published.ROWS.values()]
    assert table["bound"].str.startswith("lotfi2022").sum() == 2
    assert {"measured gap of the loss", "measured test error"} < set(table["bound"])
