"""Real checkpoints and images from the data pack."""

import pytest
import torch

import genmeasure as gm
from genmeasure.checkpoints.build import build
from genmeasure.data import manifest
from genmeasure.data.readers import load
from genmeasure.errors import InputError

pytestmark = pytest.mark.slow


def network(name, architecture):
    try:
        file = manifest.path(name)
    except InputError:
        pytest.skip("the data pack is not there; set GENMEASURE_DATA to its folder")
    return build(f"{file.parents[1] / 'archs.py'}:load_checkpoint?path_or_file={file}&arch={architecture}")


def audited(name, architecture, count, mean, std, **options):
    """The network on the first `count` test images, in batches of eight; its start is itself, one percent smaller."""
    net = network(name, architecture)
    data = load(f"cifar10_test2k?mean={mean}&std={std}", batch_size=8)
    start = {k: v * 0.99 if v.is_floating_point() else v for k, v in net.state_dict().items()}
    return gm.subject(net, start, data.gather(torch.arange(min(count, data.size))), device="cpu", **options)


ROUNDING = 1e-10
"""Of a trace: 254 of 288 pairs are drawn, and the rest is known to 2e-14 from the sizes of their eigenvalues."""


def totals(frame):
    return frame[frame["layer"] == "total"].iloc[0]


def test_resnet20_is_piecewise_linear_and_its_exact_trace_agrees_with_probes():
    s = audited("aka_resnet20", "resnet20-A", 32, "0.485,0.456,0.406", "0.229,0.224,0.225")
    assert len(s.layers) == 20
    exact = totals(gm.measure(s, "hessian-trace"))
    assert exact["stderr"] < ROUNDING * exact["value"]
    probed = totals(gm.measure(s, "hessian-trace", route="hutchinson", rtol=0.2, layer_rtol=10, max_passes=30))
    assert abs(probed["value"] - exact["value"]) < 4 * probed["stderr"]
    assert probed["stderr"] < 0.5 * exact["value"]


def test_resnet20_traces_agree_without_a_derivative():
    s = audited("aka_resnet20", "resnet20-A", 32, "0.485,0.456,0.406", "0.229,0.224,0.225")
    exact = gm.measure(s, "hessian-trace")
    assert (exact["stderr"] < ROUNDING * exact["value"]).all()
    with torch.inference_mode():
        found = gm.measure(s, "hessian-trace", route="forward", rtol=0.1, layer_rtol=0.5)
    z = ((found["value"] - exact["value"]) / found["stderr"]).abs()
    assert len(z) == 21
    assert (z < 4).all()
    assert (z < 1.96).sum() >= 17
    assert found["stderr"].iloc[-1] < 0.12 * exact["value"].iloc[-1]


def test_resnet20_curve_meets_its_parabola_somewhere_below_one_percent():
    s = audited("aka_resnet20", "resnet20-A", 64, "0.485,0.456,0.406", "0.229,0.224,0.225", dtype="float64")
    frame = gm.measure(s, "hessian-approximation", sigmas=(3e-4, 1e-3), max_passes=12)
    rows = frame[frame["term"] == "relative-difference"]
    assert (rows["value"].abs() < 4 * rows["stderr"]).any()


def test_vision_transformer_is_smooth_and_has_forms():
    s = audited("smmk_vit_cifar10", "cifar-vit", 16, "0.4914,0.4822,0.4465", "0.2023,0.1994,0.201")
    frame = gm.measure(s, "hessian-distance", steps=7).set_index(["layer", "term"])["value"]
    assert frame["total", "vH+v-max"] >= frame["total", "vHv-max"] > 0
    assert frame["total", "vHv-mean"] != pytest.approx(frame["total", "vGv-mean"], rel=1e-3)
    trace = totals(gm.measure(s, "hessian-trace", rtol=0.3, layer_rtol=100, max_passes=12))
    assert trace["stderr"] > 0
