"""What every measure and every bound promises; a new member is held to it by being registered."""

from __future__ import annotations

import functools
import inspect
import json
import math
import random

import numpy as np
import pytest
import small
import torch

import genmeasure as gm
from genmeasure import study
from genmeasure.bounds.terms import REMARKS
from genmeasure.checkpoints.match import fingerprint
from genmeasure.errors import InputError
from genmeasure.estimate import Estimate
from genmeasure.registry import KINDS, Member, bound, measure
from genmeasure.study import Request, everything
from genmeasure.subject import Subject

QUICK = {"max_passes": 4, "trace_max_passes": 4, "sigmas": (0.01, 0.05), "steps": 10, "draws": 20}
"""Parameters that only say how much work is done, for whichever member has them."""
NETWORKS = ("residual", "smooth", "chain", "keyword", "unmoved")
CONVERGENCE = ("largest-residual", "smallest-residual", "vH+v-max-error", "valid-from", "valid-to",
               "plateau-from")
"""Terms on how far an iteration came or where a drawn curve holds: they follow the seed without a standard error."""
BOUND_HELPERS = {"assumptions", "inversions", "layer_norms", "moved", "terms"}
CHOSEN = ("kl", "choice-nats", "confidence-nats", "bits")
"""Terms that say what was paid for a choice made by drawn errors: they follow the seed without a standard error."""
MEMBERS = (*measure, *bound)


def quick(request: Request, **more: object) -> Request:
    given = {**QUICK, **more}
    return Request(request.name, {**{k: v for k, v in given.items() if k in request.member.defaults},
                                  **request.parameters})


REQUESTS = [quick(r) for r in everything()]
BOUNDS = [r for r in REQUESTS if r.name in bound]


def label(request: Request) -> str:
    return "-".join([request.name, *(str(request.parameters[k]) for k in ("variant",) if k in request.parameters)])


each_request = pytest.mark.parametrize("request_", REQUESTS, ids=label)
each_bound = pytest.mark.parametrize("request_", BOUNDS, ids=label)
each_member = pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.name)


def fresh(network: str, *, batch_size: int = 16, device: str = "cpu", **more: object) -> Subject:
    start, end = small.pair("residual" if network == "unmoved" else network, move=0 if network == "unmoved" else 0.1)
    key = "pixel_values" if network == "keyword" else None
    data = [small.batches(batch_size=batch_size, seed=seed, key=key) for seed in (0, 1)]
    return gm.subject(end, start, *data, device=device, **more)


def run(subject: Subject, request: Request) -> dict:
    return request.member.function(subject, **request.parameters)


@functools.cache
def shared(network: str, dtype: str = "float32") -> Subject:
    """For tests that may reuse what a subject remembers."""
    return fresh(network, dtype=dtype)


def converging(key: str | tuple) -> bool:
    return key in CHOSEN or (isinstance(key, tuple) and key[-1] in CONVERGENCE)


def undefined(subject: Subject, request: Request) -> bool:
    """Whether the member says that it has no expression for this subject, which it then must say in a reading, too."""
    reason = request.member.defined and request.member.defined(subject)
    if reason:
        (row,) = study.read(subject, request).to_dict("records")
        assert (row["term"], row["value"], row["error"]) == ("not-defined", 1.0, "")
        assert json.loads(row["params"])["found"] == {"not defined": reason}
    return bool(reason)


def terms(estimates: dict[str, Estimate]) -> dict[str, float]:
    return {k: e.value for k, e in estimates.items()}


@each_request
@pytest.mark.parametrize("network", NETWORKS)
def test_estimates_are_numbers_with_errors_keyed_by_the_index(network, request_):
    subject, member = shared(network), request_.member
    if undefined(subject, request_):
        return
    estimates = run(subject, request_)
    assert estimates
    layers = {x.name for x in subject.layers} | {n for n, _ in subject.model.named_parameters()} | {"total"}
    allowed = {"layer": lambda v: v in layers, "term": lambda v: isinstance(v, str) and v,
               "sigma": lambda v: v is None or (isinstance(v, float) and v > 0)}
    for key, estimate in estimates.items():
        place = key if len(member.index) > 1 else (key,)
        assert isinstance(place, tuple)
        for column, value in zip(member.index, place, strict=True):
            assert allowed[column](value), (column, value)
        assert isinstance(estimate, Estimate)
        assert all(isinstance(v, float) for v in (estimate.value, estimate.stderr)), estimate
        assert isinstance(estimate.n, int)
        may_be_infinite = member.family == "bound" and estimate.value == math.inf
        assert math.isfinite(estimate.value) or may_be_infinite, (key, estimate)
        unknown = converging(key) and math.isnan(estimate.stderr)  # read off a drawn curve
        assert unknown or (math.isfinite(estimate.stderr) and estimate.stderr >= 0)
        assert estimate.n >= 1


@each_request
@pytest.mark.parametrize("network", ["residual", "smooth"])
def test_the_same_seed_gives_the_same_result_and_another_seed_another_draw(network, request_):
    if undefined(shared(network), request_):
        return
    first = run(shared(network), request_)
    again = run(fresh(network), request_)
    assert {k: e.n for k, e in again.items()} == {k: e.n for k, e in first.items()}
    for part in ("value", "stderr"):  # float32 rounds by where in memory a matrix begins
        expected = {k: pytest.approx(getattr(e, part), rel=1e-5, abs=1e-8, nan_ok=True) for k, e in first.items()}
        assert {k: getattr(e, part) for k, e in again.items()} == expected
    if "seed" not in request_.member.defaults:
        return
    other = run(shared(network), quick(request_, seed=1))
    keys = [k for k in first if not converging(k)]
    assert set(keys) == {k for k in other if not converging(k)}
    for key in keys:
        if first[key].stderr > 0:
            assert other[key].stderr > 0
            assert other[key].value != first[key].value
        else:
            assert other[key].value == pytest.approx(first[key].value, rel=2e-3, abs=1e-6), key


def snapshot(*modules: torch.nn.Module) -> list:
    found = []
    for module in modules:
        found += [(n, m.training, len(m._forward_hooks)) for n, m in module.named_modules()]
        found += [(n, p.requires_grad, p.dtype, None if p.grad is None else p.grad.sum().item())
                  for n, p in module.named_parameters()]
        found.append(fingerprint(module.state_dict()))
    return [*found, fingerprint({"torch": torch.get_rng_state()}), np.random.get_state()[1].tobytes(),  # noqa: NPY002
            np.random.get_state()[2], random.getstate()]  # noqa: NPY002


@each_request
def test_the_callers_objects_and_the_global_random_state_are_untouched(request_):
    start, end = small.pair("residual")
    end.block.weight.requires_grad_(False)
    end.stem.eval()
    end(small.images()[0]).sum().backward()
    before = snapshot(start, end)
    subject = gm.subject(end, start, small.batches(), small.batches(seed=1), device="cpu")
    own = fingerprint(subject.state)
    study.read(subject, request_)
    assert snapshot(start, end) == before
    assert fingerprint({k: v.detach() for k, v in subject.model.state_dict().items()}) == own
    assert not any(m.training or m._forward_hooks for m in subject.model.modules())
    assert not any(p.requires_grad for p in subject.model.parameters())


@each_request
def test_the_batch_size_changes_nothing_that_is_exact(request_):
    exact = quick(request_, rtol=1e-10, max_products=200) if request_.name == "hessian-top" else request_
    many, one = (run(fresh("residual", batch_size=size, dtype="float64"), exact) for size in (7, 32))
    keys = [k for k, e in one.items() if e.exact and not converging(k)]
    assert keys or "sigma" in request_.member.index
    for key in keys:
        assert many[key].value == pytest.approx(one[key].value, rel=1e-9, abs=1e-12), key


def test_an_iterated_maximum_agrees_within_its_bracket_whatever_the_batch_size():
    request = quick(Request("hessian-distance"), steps=3)
    many, one = (run(fresh("smooth", batch_size=size, dtype="float64"), request) for size in (5, 32))
    for layer in {layer for layer, _ in one}:
        width = one[layer, "vH+v-max-error"].value + many[layer, "vH+v-max-error"].value
        assert abs(one[layer, "vH+v-max"].value - many[layer, "vH+v-max"].value) <= width + 1e-12
    assert one["total", "vH+v-max-error"].value > 0


@each_member
def test_members_say_what_they_are(member: Member):
    assert member.source.strip()
    assert inspect.getdoc(member.function)
    assert member.summary.endswith((".", ":"))
    assert "\n" not in member.summary
    assert len(member.summary) <= 116
    assert inspect.getdoc(member.function).split("\n")[1:2] in ([], [""])
    assert member.function.__module__ == f"genmeasure.{member.family}s.{member.name.replace('-', '_')}"
    assert member.index
    assert set(member.index) <= set(study.COLUMNS)
    assert set([member.kind] if isinstance(member.kind, str) else member.kind.values()) <= set(KINDS)


def test_every_file_of_a_family_registers_its_member():
    import importlib
    from pathlib import Path
    for family, helpers in ((measure, set()), (bound, BOUND_HELPERS)):
        folder = Path(importlib.import_module(family.package).__file__).parent
        files = {p.stem for p in folder.glob("*.py")} - {"__init__"} - helpers
        assert files == {m.name.replace("-", "_") for m in family}


@each_bound
@pytest.mark.parametrize("network", NETWORKS)
def test_terms_add_up_to_the_total(network, request_):
    if undefined(shared(network), request_):
        return
    found = terms(run(shared(network), request_))
    parts = [v for k, v in found.items() if k not in REMARKS and not k.startswith("assumes:")]
    assert parts
    assert all(v >= 0 for v in parts)
    assert found["total"] == pytest.approx(sum(parts), rel=1e-12)
    if "log10" in found and math.isfinite(found["total"]):
        assert found["log10"] == pytest.approx(math.log10(found["total"]), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("request_", [r for r in BOUNDS if "delta" in r.member.defaults], ids=label)
@pytest.mark.parametrize("network", ["chain", "residual"])
def test_a_smaller_delta_gives_a_larger_bound(network, request_):
    totals = [run(shared(network), quick(request_, delta=d))["total"].value for d in (0.5, 0.05, 0.005)]
    assert totals == sorted(totals)
    if request_.member.kind_for(request_.parameters) == "certificate":
        assert len(set(totals)) == 3


def fixed(request_):
    """With everything that a certificate needs to know in advance."""
    return quick(request_, input_norm=1e3) if "input_norm" in request_.member.defaults else request_


@each_bound
def test_a_certificate_is_one_only_where_its_assumptions_hold(request_):
    declared = request_.member.kind_for(request_.member.parameters(request_.parameters))
    spoilt = [k for k in ("start_saw_sample", "test_was_used") if k in request_.member.defaults]
    for network, holds, more in (("chain", True, {}), ("residual", bool(spoilt), {}), (
            "chain", not spoilt, dict.fromkeys(spoilt, True))):
        rows = study.read(shared(network), Request(request_.name, {**fixed(request_).parameters, **more}))
        checks = rows[rows["term"].str.startswith("assumes:")].set_index("term")["value"]
        assert len(checks) == len(request_.member.assumes)
        assert set(checks) <= {0.0, 1.0}
        if declared != "certificate":
            assert set(rows["kind"]) == {declared}
            continue
        assert checks.eq(1).all() == holds
        assert set(rows["kind"]) == {"certificate" if holds else "measure"}


def test_a_certificate_is_among_the_bounds():
    rows = study.read(shared("chain"), Request("neyshabur2018", {"variant": "theorem", "input_norm": 1e3}))
    assert set(rows["kind"]) == {"certificate"}


@pytest.mark.parametrize("request_", [r for r in BOUNDS if "loss_upper" in r.member.defaults
                                      and r.parameters.get("variant") != "table"], ids=label)
def test_an_unbounded_loss_is_refused_with_the_remedy(request_):
    ranged = quick(request_, loss_upper="range")
    with pytest.raises(InputError, match="--loss clamped-cross-entropy, or take loss_upper=max-sample as a plug-in$"):
        run(shared("smooth"), ranged)
    found = terms(run(fresh("smooth", loss="clamped-cross-entropy"), ranged))
    assert found["loss-bound"] == 1.0
    with pytest.raises(InputError, match="give a number, 'range' or 'max-sample'$"):
        run(shared("smooth"), quick(request_, loss_upper="bound"))


def test_an_unknown_variant_or_parameter_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'theorem'\\?$"):
        run(shared("chain"), Request("neyshabur2018", {"variant": "theorm"}))
    with pytest.raises(InputError, match="unknown parameter of hessian-trace 'rtoll'; did you mean 'rtol'\\?$"):
        gm.measure(shared("chain"), "hessian-trace", rtoll=1)


def test_members_work_without_classes():
    start, end = small.pair("smooth")
    x, _ = small.images()
    data = small.Batches.from_arrays(x, torch.rand(len(x), small.CLASSES, generator=torch.Generator().manual_seed(0)))
    subject = gm.subject(end, start, data, data, loss="squared", device="cpu")
    requests = study.applicable(subject, REQUESTS)
    assert {"gap", "hessian-trace", "ju2022"} <= {r.name for r in requests}
    for request in requests:
        assert all(math.isfinite(e.value) for e in run(subject, request).values())
    for name in ("margin", "neyshabur2018"):
        assert name not in {r.name for r in requests}
        with pytest.raises(InputError, match="has no classes; margins need a classification loss$"):
            run(subject, Request(name))


def test_the_catalogue_lists_every_member():
    catalogue = gm.list().set_index("name")
    assert {m.name for m in MEMBERS} <= set(catalogue.index)
    assert catalogue.loc["neyshabur2018", "kind"] == "theorem: certificate, code: measure, table: reproduction"
    assert (catalogue["summary"] != "").all()
    assert catalogue.loc["hessian-trace", "index_columns"] == "layer"


def test_an_audit_holds_every_member_that_applies():
    rows = gm.audit(small_audit())
    assert tuple(rows.columns) == study.COLUMNS
    assert set(rows["measure"]) == {m.name for m in MEMBERS} - {"gap", "hold-out"}


def small_audit() -> Subject:
    start, end = small.pair("chain")
    return gm.subject(end, start, small.batches(), device="cpu")
