"""Cushions, Lipschitz constants, the path norm of graphs, and the measures of Jiang et al., on known networks."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import genmeasure as gm
from genmeasure.data.batches import Batches
from genmeasure.errors import InputError
from genmeasure.lipschitz import log_lipschitz
from genmeasure.measures import cushion, jiang2020, pacbayes_sharpness
from genmeasure.path_norm import log_path_norm
from genmeasure.symbolic import NoRule


def subject_of(net, x, start=None):
    return gm.subject(net, net if start is None else start, Batches.from_arrays(x, net(x).argmax(1)), dtype="float64",
                      device="cpu")


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(s, name, **parameters):
    return gm.measure(s, name, **parameters).set_index(["layer", "term"])["value"]


def test_t8_cushions_of_rank_one_and_orthogonal_layers():
    x = drawn(12, 16)
    aligned = nn.Linear(16, 4, bias=False).double()
    aligned.weight.data = torch.outer(drawn(4, seed=1), x[0])
    found = rows(subject_of(aligned, x[:1].repeat(4, 1)), "cushion", examples=4)
    assert found["", "layer-cushion"] == pytest.approx(1, rel=1e-9)
    orthogonal = nn.Linear(16, 16, bias=False).double()
    orthogonal.weight.data = torch.linalg.qr(drawn(16, 16, seed=2)).Q
    found = rows(subject_of(orthogonal, x), "cushion", examples=12)
    assert found["", "layer-cushion"] == pytest.approx(0.25, rel=1e-9)
    assert found["", "contraction"] == 1
    assert found["", "interlayer-cushion"] == pytest.approx(0.25)


def test_t8_a_layer_cushion_lies_between_the_singular_values():
    x, net = drawn(40, 6), nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 3, bias=False)).double()
    found = rows(subject_of(net, x), "cushion", examples=40)
    w = net[0].weight.detach().numpy()
    singular = np.linalg.svd(w, compute_uv=False)
    assert found["0", "layer-cushion"] <= singular[0] / np.linalg.norm(w) <= 1
    assert found["0", "contraction"] == pytest.approx(1)
    ratios = np.linalg.norm(x.numpy() @ w.T, axis=1) / (np.linalg.norm(w) * np.linalg.norm(x.numpy(), axis=1))
    assert found["0", "layer-cushion"] == pytest.approx(ratios.min(), rel=1e-9)


def rectified(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 7, bias=False), nn.ReLU(),
                            nn.Linear(7, 3, bias=False)).double()
    return net


def test_jacobians_beside_dense_ones():
    """|J x| = |x_j| for a ReLU network without biases, |J|_F^2 by the mean over signs, each for one example."""
    net, x = rectified(), drawn(5, 6)
    s = subject_of(net, x)
    batch = cushion.scanned(s, 5)
    for e in range(5):
        first, ratios = net[0](x[e]), []
        for rest in (net[1:3], net[1:]):
            dense = torch.func.jacrev(rest)(first).detach()
            assert (dense @ first).norm().item() == pytest.approx(rest(first).norm().item(), rel=1e-9)
            ratios.append(((dense @ first).norm() / (dense.norm() * first.norm())).item())
        found = cushion.between(batch.select(slice(e, e + 1)), s, 400, 0)[0].ratio
        assert abs(found.value - min(ratios)) < 4 * found.stderr
        assert 0 < found.stderr < 0.1 * found.value


def test_contraction_and_cushions_are_those_of_the_definitions():
    net, x = rectified(), drawn(30, 6)
    found = rows(subject_of(net, x), "cushion", examples=30)
    first = net[0](x)
    assert found["0", "contraction"] == pytest.approx(
        (first.norm(dim=1) / first.relu().norm(dim=1)).max().item(), rel=1e-9)
    assert found["0", "interlayer-cushion"] <= 1 / math.sqrt(8) + 1e-12
    assert found["0", "smoothness"] > 0


def test_cushion_settings_are_checked():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).double()
    s = subject_of(net, drawn(6, 4))
    with pytest.raises(InputError, match="two draws and a positive length$"):
        gm.measure(s, "cushion", probes=1)


class Block(nn.Module):
    """x + W2 relu(W1 x), then a head; without biases."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = (nn.Linear(4, 4, bias=False) for _ in range(3))

    def forward(self, x):
        return self.head(x + self.two(torch.relu(self.one(x))))


def block():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Block().double()


def test_a_residual_block_is_skip_plus_product():
    net, x = block(), drawn(8, 4)
    s = subject_of(net, x)
    norms = [np.linalg.norm(m.weight.detach().numpy(), 2) for m in (net.one, net.two, net.head)]
    assert math.exp(log_lipschitz(s)) == pytest.approx((1 + norms[0] * norms[1]) * norms[2], rel=1e-7)
    found = gm.measure(s, "lipschitz").set_index("term")["value"]
    assert found["log10-product"] == pytest.approx(math.log10(math.prod(norms)), rel=1e-7)
    slopes = [torch.linalg.matrix_norm(torch.func.jacrev(net)(row).detach(), 2).item() for row in x]
    assert max(slopes) <= 10 ** found["log10-graph"]


def test_the_path_norm_of_a_block_sums_over_its_paths():
    net = block()
    one, two, head = (m.weight.detach().abs() for m in (net.one, net.two, net.head))
    expected = (head @ (torch.eye(4).double() + two @ one)).sum().item()
    assert math.exp(log_path_norm(subject_of(net, drawn(8, 4)))) == pytest.approx(expected, rel=1e-10)


def convolutional():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2),
                            nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2, 3)).double()
        net[1].running_var.uniform_(0.5, 2)
        net[1].running_mean.normal_()
    return net.eval()


def test_the_path_norm_of_pooling_and_batch_norm_beside_absolute_modules():
    net, x = convolutional(), drawn(6, 1, 8, 8)
    scale = net[1].weight / (net[1].running_var + net[1].eps).sqrt()
    shift = (net[1].bias - net[1].running_mean * scale).abs()
    f = nn.functional
    with torch.no_grad():
        y = f.conv2d(torch.ones(1, 1, 8, 8).double(), net[0].weight.abs(), net[0].bias.abs(), padding=1)
        y = y * scale.abs()[:, None, None] + shift[:, None, None]
        y = f.avg_pool2d(y, 2) * 4
        y = f.avg_pool2d(f.conv2d(y, net[4].weight.abs(), net[4].bias.abs()), 2)
        y = f.linear(y.flatten(1), net[8].weight.abs(), net[8].bias.abs())
    s = subject_of(net, x)
    before = {k: v.clone() for k, v in s.model.state_dict().items()}
    assert math.exp(log_path_norm(s)) == pytest.approx(y.sum().item(), rel=1e-9)
    assert all(torch.equal(v, before[k]) for k, v in s.model.state_dict().items())
    jacobians = [torch.func.jacrev(net)(row[None]).detach().reshape(3, -1) for row in x]
    slopes = [torch.linalg.matrix_norm(j, 2).item() for j in jacobians]
    assert max(slopes) <= math.exp(log_lipschitz(s))


def test_what_has_no_rule_says_so():
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    s = subject_of(net, drawn(6, 4))
    with pytest.raises(NoRule, match="layer_norm$"):
        log_lipschitz(s)
    (row,) = gm.measure(s, "lipschitz").to_dict("records")
    assert (row["term"], row["error"]) == ("not-defined", "")
    assert "the Lipschitz constant has no expression for layer_norm" in row["params"]
    assert "path-norm" not in set(gm.measure(s, "jiang2020")["term"])


def test_jiang_beside_literal_twins():
    facts = jiang2020.Facts([4.0, 9.0], [6.0, 12.0], [1.0, 2.0], [0.5, 1.5], 30, 0.5, 100, math.log(7.0))
    logs, roots = jiang2020.logarithmic(facts), jiang2020.rooted(facts)
    product, frobenius = math.log(36), math.log(72)
    assert logs == pytest.approx({
        "log-prod-of-spec": product, "log-sum-of-spec": math.log(2) + product / 2, "log-prod-of-fro": frobenius,
        "log-sum-of-fro": math.log(2) + frobenius / 2, "log-prod-of-spec-over-margin": product + math.log(4),
        "log-prod-of-fro-over-margin": frobenius + math.log(4),
        "log-sum-of-spec-over-margin": math.log(2) + (product + math.log(4)) / 2,
        "log-sum-of-fro-over-margin": math.log(2) + (frobenius + math.log(4)) / 2,
        "log-spec-init-main": product + math.log(4) + math.log(1 / 4 + 2 / 9),
        "log-spec-orig-main": product + math.log(4) + math.log(6 / 4 + 12 / 9)})
    assert {k: math.exp(v) for k, v in roots.items()} == pytest.approx({
        "params": 30, "fro-dist": 3, "dist-spec-init": 2, "param-norm": 18, "fro-over-spec": 6 / 4 + 12 / 9,
        "path-norm": 7, "inverse-margin": 4, "path-norm-over-margin": 28})
    found = gm.measure(subject_of(rectified(), drawn(30, 6), rectified(1)), "jiang2020").set_index("term")["value"]
    squares = sum((a - b).square().sum().item() for a, b in zip(
        rectified().parameters(), rectified(1).parameters(), strict=True))
    assert found["fro-dist"] == pytest.approx(math.sqrt(squares / 30), rel=1e-9)


def test_the_noise_that_the_accuracy_bears():
    assert pacbayes_sharpness.tolerated(lambda sigma: sigma, 0.1, 30) == pytest.approx(0.1, abs=1e-8)
    assert pacbayes_sharpness.tolerated(lambda sigma: 0.0, 0.1, 5) == 2
    moves = torch.tensor([0.5, -1.0], dtype=torch.float64)
    expected = 0.25 * sum(math.log((1e-6 + (0.3**2 + 1) * 3.0 / 2) / (1e-6 + 0.3**2 * v * v)) for v in (0.5, 1.0))
    assert pacbayes_sharpness.magnitude_aware(moves, 3.0, 0.3, 50) == pytest.approx(
        math.sqrt((expected + math.log(50 / 0.3) + 10) / 50))
    assert pacbayes_sharpness.isotropic(3.0, 0.3, 50) == pytest.approx(
        math.sqrt((3 / (4 * 0.09) + math.log(50 / 0.3) + 10) / 50))
    s = subject_of(rectified(), drawn(30, 6), rectified(1))
    found = gm.measure(s, "pacbayes-sharpness", draws=4).set_index("term")["value"]
    assert found["error"] == 0
    assert 0 < found["sigma"] < 2
    assert found["flatness"] == pytest.approx(1 / (found["sigma"] * math.sqrt(30)))
    with pytest.raises(InputError, match="a share of the examples$"):
        gm.measure(s, "pacbayes-sharpness", draws=1)
