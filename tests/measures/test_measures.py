import json
import math

import numpy as np
import pytest
import small
import torch
from torch import nn

import genmeasure as gm
from genmeasure.data.batches import Batches
from genmeasure.errors import InputError
from genmeasure.losses import Loss
from genmeasure.measures.hessian_approximation import relative_rss, valid_range
from genmeasure.predictions import margins
from genmeasure.subject import subject

SIGMAS = [0.010 + 0.001 * i for i in range(11)]
RESNET18 = ([.86, 1.13, 1.45, 1.82, 2.23, 2.65, 3.07, 3.47, 3.84, 4.15, 4.43],
            [1.07, 1.29, 1.54, 1.80, 2.09, 2.34, 2.73, 3.08, 3.46, 3.85, 4.27])
RESNET50 = ([.39, 1.12, 1.56, 2.10, 2.71, 3.30, 3.80, 4.17, 4.60, 4.77, 5.03],
            [1.24, 1.50, 1.79, 2.10, 2.43, 2.79, 3.18, 3.59, 4.02, 4.48, 4.97])


@pytest.mark.parametrize(("table", "golden"), [(RESNET18, 0.00780), (RESNET50, 0.01884)])
def test_relative_rss_of_the_published_table(table, golden):
    assert relative_rss(*map(torch.tensor, table)).item() == pytest.approx(golden, abs=1e-5)


def test_no_published_sigma_meets_the_ten_percent_criterion_with_the_half():
    stability, published = RESNET18
    differences = [(s - p / 2) / s for s, p in zip(stability, published, strict=True)]
    assert valid_range(tuple(SIGMAS), differences) is None


def test_valid_range_is_the_longest_run():
    assert valid_range((1, 2, 3, 4, 5), [0.5, 0.05, -0.09, 0.3, 0.01]) == (2, 3)
    assert valid_range((3, 1, 2), [0.3, 0.0, 0.0]) == (1, 2)


def test_margins_keep_their_sign():
    outputs = torch.tensor([[1.0, 3.0, 2.0], [5.0, 1.0, 0.0]])
    assert margins(outputs, torch.tensor([1, 2])).tolist() == [1.0, -5.0]


def net(seed, head=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(),
                             nn.Linear(4 * 9, head))


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 1, 5, 5, generator=generator), torch.randint(0, 3, (60,), generator=generator)
    clean = torch.where(torch.arange(60) < 12, (y + 1) % 3, y)
    return Batches.from_arrays(x[:40], y[:40], clean[:40], batch_size=16), Batches.from_arrays(x[40:], y[40:])


def values(frame, term="total", column="term"):
    return frame[frame[column] == term]


def test_distance_of_every_kind_of_tensor(data):
    end, start = net(0), net(1)
    end[1].running_var.fill_(4.0)
    frame = gm.measure(subject(end, start, *data), "distance").set_index(["layer", "term"])["value"]
    moved = (end[0].weight - start[0].weight).detach().double()
    assert frame["0", "frobenius"] == pytest.approx(moved.norm().item(), rel=1e-6)
    assert frame["0", "relative"] == pytest.approx((moved.norm() / start[0].weight.norm()).item(), rel=1e-5)
    assert frame["0", "mars"] == pytest.approx(moved.flatten(1).abs().sum(1).max().item(), rel=1e-6)
    assert frame["0", "batch-norm-scale"] == pytest.approx(1 - 4.00001**-0.5, rel=1e-4)
    assert frame["4", "frobenius-about-zero"] == pytest.approx(end[4].weight.norm().item(), rel=1e-6)
    assert frame["4.bias", "max"] == pytest.approx((end[4].bias - start[4].bias).abs().max().item(), rel=1e-6)
    both = frame["0", "frobenius"] ** 2 + frame["4", "frobenius"] ** 2
    assert frame["total", "frobenius"] == pytest.approx(math.sqrt(both))


def test_a_start_with_another_head_is_measured_about_zero(data):
    end, start = net(0), net(1, head=7)
    s = subject(end, start, *data)
    frame = gm.measure(s, "distance").set_index(["layer", "term"])["value"]
    assert s.head_center == "zero"
    assert frame["4", "frobenius"] == frame["4", "frobenius-about-zero"]
    assert ("4", "relative") not in frame.index
    assert ("4.bias", "l2") not in frame.index


def test_gap_is_per_example_and_knows_both_labels(data):
    end = net(0)
    train, test = data
    frame = gm.measure(subject(end, net(1), *data), "gap").set_index("term")
    end.eval()
    with torch.no_grad():
        parts = [(torch.cat([b.inputs[0] for b in d]), torch.cat([b.targets for b in d])) for d in (train, test)]
        loss = [nn.functional.cross_entropy(end(x), y, reduction="none") for x, y in parts]
        clean = torch.cat([b.clean for b in train])
        error = (end(parts[0][0]).argmax(1) != clean).double().mean().item()
    assert frame.at["loss-train", "value"] == pytest.approx(loss[0].mean().item(), rel=1e-5)
    assert frame.at["loss-train", "stderr"] == 0
    assert frame.at["loss-gap", "value"] == pytest.approx((loss[1].mean() - loss[0].mean()).item(), rel=1e-4)
    assert frame.at["loss-gap", "stderr"] == pytest.approx((loss[1].std() / math.sqrt(20)).item(), rel=1e-4)
    assert frame.at["error-train-clean", "value"] == pytest.approx(error)
    assert frame.at["loss-test", "n"] == 20


def test_gap_without_test_data_says_what_to_pass(data):
    with pytest.raises(InputError, match="pass --test$"):
        gm.measure(subject(net(0), net(1), data[0]), "gap")


def test_sigmas_must_be_positive(data):
    with pytest.raises(InputError, match="standard deviations must be positive$"):
        gm.measure(subject(net(0), net(1), data[0]), "noise-stability", sigmas=(0.0, 0.1))


def test_an_unknown_route_names_the_nearest(data):
    with pytest.raises(InputError, match=r"did you mean 'hutchinson'\?$"):
        gm.measure(subject(net(0), net(1), data[0]), "hessian-trace", route="hutchison")


def test_approximation_carries_the_half_and_the_papers_variant(data):
    s = subject(net(0), net(1), *data, dtype="float64")
    trace = values(gm.measure(s, "hessian-trace"), "total", "layer")
    frame = gm.measure(s, "hessian-approximation", sigmas=(0.001, 0.1))
    at = frame[frame["sigma"] == 0.1].set_index("term")
    assert at.at["taylor", "value"] == pytest.approx(0.1**2 / 2 * trace["value"].item())
    assert at.at["taylor", "stderr"] == pytest.approx(0.1**2 / 2 * trace["stderr"].item())
    assert at.at["paper", "value"] == pytest.approx(2 * at.at["taylor", "value"])


def test_curve_and_parabola_agree_at_a_small_sigma(data):
    s = subject(net(0), net(1), *data, dtype="float64")
    frame = gm.measure(s, "hessian-approximation", sigmas=(1e-3,), max_passes=60, rtol=0.01)
    difference = frame[frame["term"] == "relative-difference"].iloc[0]
    assert abs(difference["value"]) < 4 * difference["stderr"]
    assert difference["stderr"] < 0.2


def test_results_do_not_depend_on_the_batch_size_where_exact(data):
    end, start = net(0), net(1)
    frames = []
    for size in (7, 40):
        train = Batches.from_arrays(torch.cat([b.inputs[0] for b in data[0]]), data[0].labels, batch_size=size)
        frames.append(gm.measure(subject(end, start, train, dtype="float64"), "hessian-distance"))
    assert frames[0]["value"].to_numpy() == pytest.approx(frames[1]["value"].to_numpy(), rel=1e-6, abs=1e-9)


def test_forms_are_named_apart_in_a_smooth_network(data):
    frame = gm.measure(subject(net(0), net(1), *data, dtype="float64"), "hessian-distance", steps=60, rtol=1e-8)
    at = frame.set_index(["layer", "term"])["value"]
    assert at["0", "vHv-mean"] != pytest.approx(at["0", "vGv-mean"], rel=1e-3)
    assert at["0", "vH+v-max"] >= at["0", "vHv-max"]
    assert at["4", "vHv-max"] == pytest.approx(at["4", "vGv-max"], rel=1e-9)  # the head is linear
    assert at["0", "vH+v-max-error"] <= 1e-6


def test_top_eigenvalue_of_blocks_and_whole(data):
    frame = gm.measure(subject(net(0), net(1), *data, dtype="float64"), "hessian-top", per_layer=True, rtol=1e-6)
    at = frame.set_index(["layer", "term"])["value"]
    assert at["total", "converged"] == 1
    assert at["total", "largest"] >= max(at["0", "largest"], at["4", "largest"]) - 1e-9
    assert at["total", "smallest"] <= min(at["0", "smallest"], at["4", "smallest"]) + 1e-9


def test_noise_stability_of_a_well_fitted_model_does_not_depend_on_the_precision():
    """Losses near zero are small differences of large outputs; their rounding is common to all draws."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
        x = torch.randn(64, 4)
    y = net(x).argmax(1)
    with torch.no_grad():
        margin = net(x).sort(1).values
        keep = (margin[:, 2] - margin[:, 1]) > 0.3
        net[2].weight *= 60
        net[2].bias *= 60
    values = []
    for dtype in ("float32", "float64"):
        s = subject(net, net, Batches.from_arrays(x[keep], y[keep], batch_size=8), dtype=dtype, device="cpu")
        assert s.risk.value() < 1e-6
        values.append(gm.measure(s, "noise-stability", sigmas=(5e-4,), max_passes=10)["value"][0])
    assert values[0] == pytest.approx(values[1], rel=0.02)


def brier(outputs, targets):
    p = outputs.softmax(1)
    return p.square().sum(1) - 2 * p.gather(1, targets[:, None])[:, 0] + 1


def test_positive_part_of_a_loss_that_is_not_convex_in_the_outputs():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = [nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).double() for _ in range(2)]
        x, y = torch.randn(10, 3).double(), torch.randint(0, 3, (10,))
    s = subject(*nets, Batches.from_arrays(x, y), dtype="float64", device="cpu", loss=Loss("brier", brier, upper=2.0))
    frame = gm.measure(s, "hessian-distance", steps=30, rtol=1e-9).set_index(["layer", "term"])["value"]
    for layer in s.layers:
        v, truth = s.displacement(layer).reshape(-1), []
        for i in range(10):
            def loss(w, i=i, layer=layer):
                weights = {layer.name: w.reshape(s.weight(layer).shape)}
                return s.risk.losses(weights, next(iter(s.train)).select(slice(i, i + 1)))[0]
            values, vectors = torch.linalg.eigh(torch.func.hessian(loss)(s.weight(layer).reshape(-1)))
            truth.append(((vectors.T @ v) ** 2 * values.clamp(min=0)).sum().item())
        assert frame[layer.name, "vH+v-max"] == pytest.approx(max(truth), rel=1e-6)
        assert frame[layer.name, "vH+v-max"] > frame[layer.name, "vHv-max"] - 1e-12


def test_losses_that_are_nan_name_the_example(data):
    x = torch.cat([b.inputs[0] for b in data[0]])
    x[5] = 3e38  # overflows in the network
    s = subject(net(0), net(1), Batches.from_arrays(x, data[0].labels))
    with pytest.raises(InputError, match=r"on example 5 of 'data' \(batch 0\) and 0 others; .*--dtype float64$"):
        gm.measure(s, "margin")


def test_the_gauss_newton_trace_is_the_hessian_trace_of_a_piecewise_linear_network_only():
    for name, route in (("residual", "gauss-newton"), ("smooth", "split")):
        end, start = small.pair(name)
        s = gm.subject(end, start, small.batches(), dtype="float64", device="cpu")
        hessian, gauss_newton = (gm.measure(s, m, rtol=0.01) for m in ("hessian-trace", "gauss-newton-trace"))
        found = json.loads(hessian["params"].iloc[0])["found"]
        assert found["route"] == route
        assert found["piecewise-linear-layers"] == (3 if name == "residual" else 1)
        same = np.allclose(hessian["value"], gauss_newton["value"], rtol=1e-9)
        assert same == (name == "residual")
