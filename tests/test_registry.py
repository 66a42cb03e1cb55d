"""Families and their members: discovery, parameters, source hashes."""

from __future__ import annotations

import sys

import pytest
import small

import genmeasure as gm
from genmeasure import registry
from genmeasure.errors import InputError
from genmeasure.registry import Family, algorithm, bound, find, label_noise, measure, model_family

ONE = '''from genmeasure.registry import Family
from {package} import family
from {package}.helper import FACTOR

@family("{name}", index=("term",), unit={{"a": "loss"}}, kind={{"theorem": "certificate", "table": "reproduction"}},
        source="nowhere")
def member(subject, *, needed, variant="table", scale=2.0):
    """First line.

    Second paragraph.
    """
    subject.calls.append(needed)
    return scale * FACTOR
'''


@pytest.fixture
def package(tmp_path, monkeypatch, request):
    """A family in a package on disk with one member, `one`."""
    name = f"family_{request.node.name.replace('[', '_').replace(']', '')}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text(
        f"from genmeasure.registry import Family\nfamily = Family('thing', '{name}', remember=True)\n")
    (folder / "helper.py").write_text("FACTOR = 3\n")
    (folder / "one.py").write_text(ONE.format(package=name, name="one"))
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        del sys.modules[module]


def family_of(folder) -> Family:
    return __import__(folder.name).family


class Memory:
    def __init__(self):
        self.calls, self.kept = [], {}

    def remember(self, key, compute):
        if key not in self.kept:
            self.kept[key] = compute()
        return self.kept[key]


def test_a_member_is_found_by_adding_a_file(package):
    family = family_of(package)
    assert [m.name for m in family] == ["one"]
    assert "one" in family
    assert "two" not in family
    assert family["one"].summary == "First line."
    assert family["one"].defaults.keys() == {"needed", "variant", "scale"}
    with pytest.raises(InputError, match="unknown thing 'onee'; did you mean 'one'\\?$"):
        family["onee"]


def test_parameters_go_over_the_defaults_and_unknown_ones_are_named(package):
    member = family_of(package)["one"]
    assert member.parameters({"needed": 1}) == {"needed": 1, "variant": "table", "scale": 2.0}
    with pytest.raises(InputError, match="write it as one:needed=VALUE$"):
        member.parameters({})
    with pytest.raises(InputError, match="did you mean 'scale'\\?$"):
        member.parameters({"scael": 1})


def test_kind_and_unit_follow_variant_and_term(package):
    member = family_of(package)["one"]
    assert member.kind_for({"variant": "theorem"}) == "certificate"
    assert (member.unit_for("a"), member.unit_for("b")) == ("loss", "")
    many = registry.Member("thing", "many", len, unit={"*converged": "", "top*": "loss", "top-2": "never"})
    assert [many.unit_for(t) for t in ("top", "top-2", "top-2-converged", "other")] == ["loss", "loss", "", ""]


def test_a_subject_remembers_by_parameters(package):
    member, subject = family_of(package)["one"], Memory()
    assert member.function(subject, needed=1) == member.function(subject, needed=1, scale=2.0) == 6.0
    assert subject.calls == [1]
    assert member.function(subject, needed=1, scale=1.0) == 3.0
    assert member.function(subject, needed=2) == 6.0
    assert subject.calls == [1, 1, 2]


def test_two_files_cannot_register_one_name(package):
    (package / "two.py").write_text(ONE.format(package=package.name, name="one"))
    with pytest.raises(ValueError, match="names must differ$"):
        list(family_of(package))


def test_every_member_loads_and_find_spans_measures_and_bounds():
    assert {m.name for m in measure} >= {"distance", "gap", "hessian-trace", "noise-stability", "norm", "margin"}
    assert {m.name for m in bound} >= {"neyshabur2018", "li2021", "ju2022"}
    assert {m.name for m in algorithm} >= {"plain", "sam", "layer-ball"}
    assert find("gap").family == "measure"
    assert find("ju2022").family == "bound"
    with pytest.raises(InputError, match="unknown measure or bound 'hesian-top'; did you mean 'hessian-top'\\?$"):
        find("hesian-top")


def test_the_hash_covers_the_modules_that_are_imported(monkeypatch):
    own = measure["hessian-trace"].source_hash()
    assert own == measure["hessian-trace"].source_hash() != measure["distance"].source_hash()
    read = registry.Path.read_bytes
    for changed, differs in (("curvature/products.py", True), ("curvature/draws.py", True), ("risk.py", True),
                             ("measures/distance.py", False), ("tables.py", False)):
        registry._source_hash.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(registry.Path, "read_bytes", lambda path, end=changed: read(path) + (
                b"#" if path.as_posix().endswith(f"genmeasure/{end}") else b""))
            assert (measure["hessian-trace"].source_hash() != own) == differs, changed
    registry._source_hash.cache_clear()
    assert measure["hessian-trace"].source_hash() == own


def test_the_listing_has_one_row_per_member():
    catalogue = gm.list()
    assert len(catalogue) == sum(1 for family in (measure, bound, algorithm, model_family, label_noise)
                                 for _ in family)
    assert catalogue["name"].is_unique


def test_members_are_registered_once_however_they_are_imported():
    import genmeasure.measures.distance as module
    assert measure["distance"].function is module.distance
    start, end = small.pair("chain")
    subject = gm.subject(end, start, small.batches(), device="cpu")
    assert module.distance(subject) is module.distance(subject)
