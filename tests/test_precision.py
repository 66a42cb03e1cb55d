"""Fewer bits: what works in bfloat16, what is refused, and activations that the host keeps."""

from __future__ import annotations

import json

import numpy as np
import pytest
import small
import torch
from torch import Tensor
from torch.nn import functional as F

import genmeasure as gm
from genmeasure.curvature.ascent import loss_and_gradient
from genmeasure.curvature.noise import survey
from genmeasure.curvature.perturbation import Perturbed
from genmeasure.curvature.products import gauss_newton_product, hessian_product
from genmeasure.errors import InputError

FORWARD = {"gap": {}, "margin": {}, "sharpness": {"steps": 1, "max_passes": 1},
           "noise-stability": {"sigmas": (0.1, 0.3), "max_passes": 1},
           "hessian-trace": {"route": "forward", "forward_sigma": 0.1, "max_passes": 1, "rtol": 1.0, "layer_rtol": 1.0}}
REFUSED = ("hessian-trace", "hessian-distance", "hessian-top", "hessian-density", "gauss-newton-trace",
           "gauss-newton-top", "gauss-newton-density", "cushion")


def subject(name: str = "smooth", **how: object) -> gm.Subject:
    start, end = small.pair(name)
    return gm.subject(end, start, small.batches(), small.batches(seed=1), device="cpu", **how)


@pytest.mark.parametrize("network", ["smooth", "residual"])
@pytest.mark.parametrize("name", FORWARD)
def test_measures_of_forward_passes_work_in_bfloat16(network, name):
    found, exact = (gm.measure(subject(network, dtype=dtype), name, **FORWARD[name])
                    for dtype in ("bfloat16", "float64"))
    assert len(found) == len(exact)
    assert not (found["value"] == exact["value"]).all()
    assert json.loads(found["params"].iloc[0])["found"]["dtype"] == "bfloat16"
    assert json.loads(exact["params"].iloc[0])["found"]["dtype"] == "float64"
    if name != "sharpness":  # which looks closer than bfloat16 sees
        close = 4 * np.hypot(found["stderr"], exact["stderr"]) + 0.03 * exact["value"].abs().max()
        assert ((found["value"] - exact["value"]).abs() <= close).all()


@pytest.mark.parametrize("name", REFUSED)
def test_measures_of_derivatives_are_refused_in_bfloat16(name):
    network = "chain" if name == "cushion" else "smooth"
    with pytest.raises(InputError, match="measure with --dtype float32, or take a measure of forward passes alone, "
                                         "such as hessian-trace:route=forward,forward_sigma=0.1$"):
        gm.measure(subject(network, dtype="bfloat16"), name)


def test_noise_is_added_in_float32_and_rounded_once():
    risk = subject("chain", dtype="bfloat16").risk
    layer, batch = risk.layers[0], risk.place(next(iter(risk.batches)))
    u = torch.randn(risk.weights[layer.name].shape, generator=torch.Generator().manual_seed(0))

    def through(weight: Tensor) -> Tensor:
        x = F.linear(batch.inputs[0].flatten(1).bfloat16(), weight.bfloat16())
        for name in list(risk.weights)[1:]:
            x = F.linear(x.relu(), risk.weights[name].bfloat16())
        return x.float()
    weight, move = risk.weights[layer.name], 1e-3 * u
    with torch.no_grad(), Perturbed(risk, [layer]).moved({layer.name: move.add}):
        found = risk.outputs({}, batch)
    assert found.dtype == weight.dtype == torch.float32
    assert torch.equal(found, through(weight + move))
    assert not torch.equal(found, through(weight.bfloat16() + move.bfloat16()))


def test_losses_of_bfloat16_passes_are_not_rounded_to_it():
    risk = subject(dtype="bfloat16").risk
    batch = risk.place(next(iter(risk.batches)))
    with torch.no_grad():
        losses, total = risk.losses({}, batch), risk.batch_loss(batch)
    assert losses.dtype == torch.float32
    assert not torch.equal(losses, losses.bfloat16().float())
    assert total.dtype == torch.float64


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("loss", ["cross-entropy", "clamped-cross-entropy"])
def test_what_noise_adds_is_counted_from_losses_that_are_not_rounded(dtype, loss):
    whole, one = (subject("residual", dtype=d, loss=loss) for d in ("float32", dtype))
    with torch.no_grad():
        expected = torch.cat([whole.risk.losses_of(whole.risk.outputs({}, b).double(), b) for b in whole.train])
    torch.testing.assert_close(survey(one.risk).losses, expected, rtol=1e-6, atol=1e-6)


def test_a_dtype_changes_the_fingerprint():
    found = {subject(dtype=dtype).fingerprint for dtype in ("float32", "bfloat16", "float64")}
    assert len(found) == 3


def test_a_dtype_is_refused_where_the_device_has_none_of_it_and_by_a_wrong_name():
    with pytest.raises(InputError, match="has no such products; take float32, or --device cuda$"):
        subject(dtype="tf32")
    with pytest.raises(InputError, match="choose one of float32, float64, tf32, bfloat16$"):
        subject(dtype="float16")


class Elsewhere(torch.autograd.graph.saved_tensors_hooks):
    """In place of the host's memory: as numpy arrays, which no graph knows."""

    packed = 0

    def __init__(self):
        def pack(tensor: Tensor) -> np.ndarray:
            Elsewhere.packed += 1
            return tensor.detach().numpy().copy()
        super().__init__(pack, torch.from_numpy)


@pytest.mark.parametrize("network", ["smooth", "residual"])
def test_products_are_the_same_where_the_host_keeps_activations(network, monkeypatch):
    plain, offloaded = (subject(network, dtype="float64", offload=offload).risk for offload in (False, True))
    vectors = {k: torch.randn(w.shape, generator=torch.Generator().manual_seed(0)).to(w)
               for k, w in plain.weights.items()}
    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", Elsewhere)
    for compute in (lambda r: hessian_product(r, vectors), lambda r: gauss_newton_product(r, vectors),
                    lambda r: r.restricted(r.layers[:1]).gradient(), lambda r: loss_and_gradient(r, r.weights)[1]):
        Elsewhere.packed = 0
        expected = compute(plain)
        assert Elsewhere.packed == 0
        found = compute(offloaded)
        assert Elsewhere.packed > 0
        assert all(torch.allclose(found[k], expected[k], rtol=1e-12, atol=1e-14) for k in expected)
