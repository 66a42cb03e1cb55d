"""Bounds of prior work beside slow literal twins, their golden numbers, the sanity properties of bounds.md 7."""

import math

import dense
import numpy as np
import pytest
import torch
from torch import nn

import genmeasure as gm
from genmeasure.bounds import (
    arora2018,
    bartlett2017,
    gonon2024,
    gouk2021,
    ju2022_consistent,
    ju2022_trace,
    long2020,
    pacbayes_kl,
    pitas2017,
)
from genmeasure.bounds.assumptions import expressible
from genmeasure.bounds.layer_norms import layer_norms
from genmeasure.bounds.terms import log_sum
from genmeasure.curvature.example_traces import largest_positive_traces
from genmeasure.data.batches import Batches
from genmeasure.data.label_noise import inverse_confusion
from genmeasure.errors import InputError
from genmeasure.estimate import Estimate
from genmeasure.measures.cushion import Cushion
from genmeasure.norms import NORMS
from genmeasure.path_norm import log_path_norm
from genmeasure.training.losses.consistent import corrected

W1, W2 = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]])


def chain(*, scale=1.0, logit=1.0, moved=0.3, copies=1, classes=3, rescale_start=True, hidden=8, permuted=False,
          batch_size=64, reference_head=True):
    """A bias-free ReLU chain of three layers, scale moved between its first two, all data classified rightly."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = [nn.Sequential(nn.Linear(4, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, 6, bias=False), nn.ReLU(),
                              nn.Linear(6, classes, bias=False)).double() for _ in range(2)]
        x = torch.randn(30, 4).double()
        order = torch.randperm(hidden)
    net, start = nets
    for one, other in zip(start.parameters(), net.parameters(), strict=True):
        one.data = other.data + moved * one.data
    y = net(x).argmax(1)
    for n in nets if rescale_start else nets[:1]:
        n[0].weight.data *= scale
        n[2].weight.data /= scale
    for n in nets if reference_head else nets[:1]:
        n[4].weight.data *= logit
    if permuted:
        for n in nets:
            n[0].weight.data, n[2].weight.data = n[0].weight.data[order], n[2].weight.data[:, order]
    data = Batches.from_arrays(x.repeat(copies, 1), y.repeat(copies), batch_size=batch_size)
    return gm.subject(net, start, data, dtype="float64", device="cpu")


def convolutional():
    """ReLU, two convolutions of stride 1 and 2 without biases, BatchNorm behind the first, a head."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        nets = []
        for _ in range(2):
            net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(),
                                nn.Conv2d(3, 4, 3, stride=2, bias=False), nn.ReLU(), nn.Flatten(),
                                nn.Linear(16, 3, bias=False)).double().eval()
            net[1].running_var.uniform_(0.5, 2)
            net[1].weight.data.uniform_(0.5, 2)
            nets.append(net)
        x = torch.randn(24, 2, 5, 5).double()
    net, start = nets
    return gm.subject(net, start, Batches.from_arrays(x, net(x).argmax(1)), dtype="float64", device="cpu")


SUBJECTS = {"chain": chain, "convolutional": convolutional}
each_subject = pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)


def total(s, name, **parameters):
    frame = gm.measure(s, name, **parameters)
    return frame.loc[frame["term"] == "total", "value"].item()


def reshaped(s, fold=True):
    """Weights, starts and moves as numpy matrices [out, rest], with each one's own BatchNorm folded in by hand."""
    found = []
    for layer in s.layers:
        pair = []
        for state in (s.state, s.start):
            w = state[layer.parameter].numpy().copy()
            norm = layer.batch_norm
            if norm and fold:
                scale = state[f"{norm}.weight"].numpy() / np.sqrt(state[f"{norm}.running_var"].numpy() + 1e-5)
                w = w * scale.reshape(-1, 1, 1, 1)
            pair.append(w)
        found.append((pair[0], pair[1], pair[0] - pair[1]))
    return [[part.reshape(len(part), -1) for part in three] for three in found]


def unrolled(s):
    """The same as dense matrices of the linear maps, column by column of unit vectors."""
    found = []
    for layer, three in zip(s.layers, reshaped(s), strict=True):
        if not layer.convolution:
            found.append(three)
            continue
        units = torch.eye(math.prod(layer.input_shape), dtype=torch.float64).reshape(-1, *layer.input_shape)
        module = layer.module
        found.append([nn.functional.conv2d(units, torch.from_numpy(w).reshape(module.weight.shape), None, module.stride,
                                           module.padding).flatten(1).T.numpy() for w in three])
    return found


def margin_of(s, percentile=0.1):
    x, y = next(iter(s.train)).inputs[0], s.train.labels
    out = s.model(x).detach().numpy()
    values = [row[label] - max(np.delete(row, label)) for row, label in zip(out, y.tolist(), strict=True)]
    return float(np.quantile(values, percentile))


def spectral(w):
    return np.linalg.svd(w, compute_uv=False)[0]


def mars(w):
    return max(sum(abs(v) for v in row) for row in w)


def two_one(w):
    return sum(math.sqrt(sum(v * v for v in row)) for row in w)


@each_subject
def test_table_forms_beside_literal_twins(subject):
    s = subject()
    n, gamma, layers = s.train.size, margin_of(s), reshaped(s)
    product = math.prod(spectral(w) for w, _, _ in layers)
    ratios = {"f": [np.linalg.norm(w) / spectral(w) for w, _, _ in layers],
              "d": [np.linalg.norm(v) / spectral(w) for w, _, v in layers],
              "s": [spectral(v) / spectral(w) for w, _, v in layers],
              "m": [mars(v) / mars(w) for w, _, v in layers]}
    parameters = sum(p.numel() for p in s.model.parameters())
    expected = {
        "neyshabur2018": product / gamma * math.sqrt(sum(r * r for r in ratios["f"]) / n),
        "pitas2017": product / gamma * math.sqrt(sum(r * r for r in ratios["d"]) / n),
        "long2020": product * math.sqrt(parameters / n * sum(r * r for r in ratios["s"])),
        "gouk2021": math.prod(2 * mars(w) for w, _, _ in layers) * sum(ratios["m"]) / math.sqrt(n)}
    b, d = [spectral(w) for _, w, _ in layers], [np.linalg.norm(v) for _, _, v in layers]
    inner = sum(math.prod(b[j] + d[j] for j in range(len(b)) if j != i) for i in range(len(b)))
    expected["li2021"] = math.sqrt(inner**2 * sum(x * x for x in d) / n) / 0.1
    for name, value in expected.items():
        assert total(s, name, variant="table") == pytest.approx(value, rel=1e-8), name


@each_subject
def test_the_neyshabur_code_form_beside_its_literal_twin(subject):
    s = subject()
    layers, d = reshaped(s), len(s.layers)
    inner = sum(len(w) * (np.linalg.norm(v) / spectral(w)) ** 2 for w, _, v in layers)
    value = d * math.prod(spectral(w) for w, _, _ in layers) / margin_of(s) * math.sqrt(inner / s.train.size)
    assert total(s, "neyshabur2018", variant="code") == pytest.approx(value, rel=1e-8)


@each_subject
def test_bartlett_beside_its_literal_twin(subject):
    s = subject()
    x = torch.cat([b.inputs[0] for b in s.train])
    norms, maps = layer_norms(s, "weight", "operator"), unrolled(s)
    positions = [math.prod(y.output_shape[1:]) if y.convolution else 1 for y in s.layers]
    for variant, which in (("zero", 0), ("start", 2)):
        b = [p * two_one(three[which]) for p, three in zip(positions, reshaped(s), strict=True)]
        assert all(two_one(m[which]) <= c * (1 + 1e-9) for m, c in zip(maps, b, strict=True))
        inner = sum((c / a) ** (2 / 3) for c, a in zip(b, norms, strict=True)) ** 1.5
        value = x.norm().item() * math.prod(norms) * inner / (margin_of(s) * s.train.size)
        assert total(s, "bartlett2017", variant=variant) == pytest.approx(value, rel=1e-8)


@each_subject
def test_theorem_forms_beside_literal_twins(subject):
    s = subject()
    n, gamma, delta = s.train.size, margin_of(s), 0.05
    x = torch.cat([b.inputs[0] for b in s.train])
    reach, largest = x.flatten(1).norm(dim=1).max().item(), x.abs().max().item()
    op, op_move, op_start = (layer_norms(s, of, "operator") for of in ("weight", "displacement", "start"))
    unrolled_norms, unrolled_moves = (layer_norms(s, of, "unrolled") for of in ("weight", "displacement"))
    wrong = gm.measure(s, "pitas2017", variant="theorem").set_index("term")["value"]["margin-error"]
    rho = []
    for layer, (w, _, _) in zip(s.layers, reshaped(s), strict=True):
        out, rest = w.shape
        rho.append(1.4 * 3 * (math.sqrt(rest / 9) + math.sqrt(out)) if layer.convolution
                   else math.sqrt(rest) + math.sqrt(out))
    moves = [np.linalg.norm(v) for _, _, v in reshaped(s)]
    kl = 8 * math.e**4 * reach**2 * sum(rho) ** 2 * math.prod(op) ** 2 * sum(
        (d / a) ** 2 for d, a in zip(moves, op, strict=True)) / gamma**2
    pitas = wrong + 4 * math.sqrt((kl + math.log(6 * n / delta)) / (n - 1))
    assert total(s, "pitas2017", variant="theorem") == pytest.approx(pitas, rel=1e-8)
    parameters, excess = sum(p.numel() for p in s.model.parameters()), max(0, max(op_start) - 1)
    inside = sum(op_move) + excess * len(op) + max(0, math.log(reach / gamma))
    assert total(s, "long2020", variant="theorem") == pytest.approx(math.sqrt(parameters * inside / n), rel=1e-8)
    confidence, c = 3 * math.sqrt(math.log(2 / delta) / (2 * n)), s.classes
    weights, shifts = ([mars(three[k]) for three in reshaped(s)] for k in (0, 2))
    inside = math.prod(2 * b for b in weights) * sum(d / b for d, b in zip(shifts, weights, strict=True))
    value = 4 * math.sqrt(math.log(2 * x[0].numel())) * c * largest * inside / (gamma * math.sqrt(n))
    assert total(s, "gouk2021", variant="mars") == pytest.approx(wrong + value + confidence, rel=1e-8)
    sizes = [math.prod(y.input_shape) for y in s.layers]
    inside = math.prod(2 * b * math.sqrt(k) for b, k in zip(unrolled_norms, sizes, strict=True)) * sum(
        unrolled_moves[j] / (unrolled_norms[j] * math.prod(math.sqrt(k) for k in sizes[:j + 1]))
        for j in range(len(sizes)))
    value = 4 * math.sqrt(2) * c * reach * inside / (gamma * math.sqrt(n))
    assert total(s, "gouk2021", variant="frobenius") == pytest.approx(wrong + value + confidence, rel=1e-8)


def largest_stretch(s, which):
    """The certified norms by dense matrices: 0 the weights', 1 the start's; float64 rounding is added to them.

    A convolution's is the smaller of its reshaped norm times ceil(k/s) and the norm on a periodic map which has room
    for its outputs and for the taps that reach beyond.
    """
    found = []
    for layer, three in zip(s.layers, reshaped(s), strict=True):
        w, norm = three[which], spectral(three[which])
        if layer.convolution:
            (k, _), (stride, _), out = layer.module.kernel_size, layer.module.stride, layer.output_shape[1]
            side = stride * (out + math.ceil(k / stride) - 1)
            units = torch.eye(layer.input_shape[0] * side**2, dtype=torch.float64)
            units = units.reshape(-1, layer.input_shape[0], side, side)
            around = nn.functional.pad(units, (0, k - 1, 0, k - 1), mode="circular")
            kernel = torch.from_numpy(w).reshape(layer.module.weight.shape)
            periodic = nn.functional.conv2d(around, kernel, stride=stride)[:, :, :side // stride, :side // stride]
            norm = min(math.ceil(k / stride) * norm, spectral(periodic.flatten(1).numpy()))
        assert spectral(unrolled(s)[len(found)][which]) <= norm * (1 + 1e-9)
        found.append(norm * (1 + 1e-9))
    return found


def repeated_frobenius(s, which):
    """Frobenius norms of the linear maps, a kernel counted at every position of the output."""
    found = []
    for layer, three in zip(s.layers, reshaped(s), strict=True):
        positions = layer.output_shape[1] * layer.output_shape[2] if layer.convolution else 1
        found.append(math.sqrt(sum(positions * v * v for row in three[which] for v in row)))
    return found


def widest(s):
    return max(math.prod(shape) for layer in s.layers for shape in (layer.input_shape, layer.output_shape))


@pytest.mark.parametrize("make", [lambda: chain(), lambda: chain(logit=3e4), lambda: chain(logit=1e9), convolutional],
                         ids=["chain", "beta within its grid", "large norms", "convolutional"])
def test_the_neyshabur_theorem_beside_its_literal_twin(make):
    s = make()
    x = torch.cat([b.inputs[0] for b in s.train])
    norms, fro, h, m, d = largest_stretch(s, 0), repeated_frobenius(s, 0), widest(s), len(x), len(s.layers)
    reach, beta = x.flatten(1).norm(dim=1).max().item(), math.prod(norms) ** (1 / d)
    out, values = s.model(x).detach(), []
    for j in range(-20, 21):
        gamma = 2.0**j
        wrong = sum(row[label] - max(v for k, v in enumerate(row) if k != label) <= gamma
                    for row, label in zip(out.tolist(), s.train.labels.tolist(), strict=True)) / m
        low, nearest = (gamma / (2 * reach)) ** (1 / d), beta
        if low <= beta <= (gamma * math.sqrt(m) / (2 * reach)) ** (1 / d):
            steps = [low + i * 2 * low / d for i in range(math.ceil(d * m ** (1 / (2 * d))) + 1)]
            nearest = min(steps, key=lambda b: abs(b - beta))
        kl = 42**2 / 2 * d**2 * reach**2 * h * math.log(4 * d * h) * nearest ** (2 * d - 2) / gamma**2 * beta**2 * sum(
            (f / a) ** 2 for f, a in zip(fro, norms, strict=True))
        values.append(wrong + 4 * math.sqrt((kl + math.log(6 * d * m ** (1 + 1 / (2 * d)) / (0.05 / 41))) / (m - 1)))
    assert total(s, "neyshabur2018", variant="theorem") == pytest.approx(min(values), rel=1e-9)


@each_subject
def test_the_li_theorem_beside_its_literal_twin(subject):
    s = subject()
    x, y, epsilon, delta = torch.cat([b.inputs[0] for b in s.train]), s.train.labels, 0.1, 0.05
    b, moves, h, n = largest_stretch(s, 1), repeated_frobenius(s, 2), widest(s), len(x)
    reach = x.flatten(1).norm(dim=1).max().item()
    losses = [math.log(sum(math.exp(v) for v in row)) - row[label]
              for row, label in zip(s.model(x).tolist(), y.tolist(), strict=True)]
    inner = sum(math.prod(b[j] + moves[j] for j in range(len(b)) if j != i) for i in range(len(b)))
    inside = (36 / epsilon**2 * reach**2 * h * math.log(4 * len(b) * h * reach) * inner**2 * sum(v * v for v in moves)
              + 3 * math.log(n / delta) + 8)
    value = sum(losses) / n + epsilon + max(losses) * math.sqrt(inside / n)
    assert total(s, "li2021", variant="theorem") == pytest.approx(value, rel=1e-9)


def apart(convolved):
    """Behind the first layer no two outputs share an input: J J' is diagonal, and signs u give |J'u| = |J|_F."""
    with torch.random.fork_rng():
        torch.manual_seed(6 if convolved else 2)
        if convolved:
            net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.ReLU(),
                                nn.Conv2d(4, 2, 3, stride=2, bias=False), nn.ReLU(), nn.Flatten(),
                                nn.Linear(8, 3, bias=False)).double()
            kernel = net[2].weight.data
            kernel[:, :, 2] = kernel[:, :, :, 2] = kernel[0, 2:] = kernel[1, :2] = 0
            x = torch.randn(12, 2, 5, 5).double()
        else:
            net = nn.Sequential(nn.Linear(4, 9, bias=False), nn.ReLU(), nn.Linear(9, 6, bias=False), nn.ReLU(),
                                nn.Linear(6, 3, bias=False)).double()
            x = torch.randn(12, 4).double()
        for linear in (m for m in net[1:] if isinstance(m, nn.Linear)):
            rows, columns = torch.meshgrid(*map(torch.arange, linear.weight.shape), indexing="ij")
            linear.weight.data *= columns % len(linear.weight) == rows
    return gm.subject(net, {k: 0.9 * v for k, v in net.state_dict().items()},
                      Batches.from_arrays(x, net(x).argmax(1)), dtype="float64", device="cpu")


@pytest.mark.parametrize("convolved", [False, True], ids=["chain", "convolutional"])
def test_arora_beside_its_literal_twin(convolved):
    s = apart(convolved)
    net, x, n, d = s.model, torch.cat([b.inputs[0] for b in s.train]), 12, 3
    places = [i for i, m in enumerate(net) if hasattr(m, "weight")]
    into, outs = ([net[:i + k](x).detach() for i in places] for k in (0, 1))
    parts, contractions = [], []
    for i, start in enumerate(places):
        w, layer = net[start].weight.detach(), s.layers[i]
        positions = math.prod(outs[i].shape[2:])
        mu = min((o.norm() / (w.norm() * v.norm())).item() for o, v in zip(outs[i], into[i], strict=True))
        between, spread, c = math.sqrt(positions / outs[i][0].numel()), 1.0, 1.0
        for v in outs[i] if i + 1 < d else []:
            c = max(c, (v.norm() / v.relu().norm()).item())
            for end in places[i + 1:]:
                jacobian = torch.autograd.functional.jacobian(net[start + 1:end + 1], v[None])
                jacobian = jacobian.reshape(-1, v.numel())
                ratio = (jacobian @ v.flatten()).norm() / (jacobian.norm() * v.norm())
                between = min(between, math.sqrt(positions) * ratio.item())
                pixels = jacobian.square().sum(0).reshape(len(v), -1).sum(0)
                if layer.convolution:
                    spread = max(spread, (pixels.max() / pixels.sum()).item() * positions)
        contractions.append(c)
        patches = math.ceil(layer.module.kernel_size[0] / layer.module.stride[0]) if layer.convolution else 1
        parts.append(spread * patches**2 / (mu * between) ** 2)
    squared = (net(x).norm(dim=1).max().item() / margin_of(s)) ** 2
    table = math.sqrt(squared * sum(c * c * p for c, p in zip(contractions, parts, strict=True)) / n)
    assert total(s, "arora2018", variant="table") == pytest.approx(table, rel=1e-9)
    parameters = 2 * 72 * squared * max(contractions) ** 2 * d**2 * math.log(n * d * widest(s) / 0.05) * sum(parts)
    wrong = gm.measure(s, "arora2018").set_index("term")["value"]["margin-error"]
    value = wrong + math.sqrt(parameters / n)
    assert total(s, "arora2018", variant="theorem") == pytest.approx(value, rel=1e-9)


def test_golden_numbers_of_the_two_matrices():
    assert math.exp(bartlett2017.log_complexity([3, 2], [4, 3])) == pytest.approx(24.0277545978, abs=1e-9)
    assert math.exp(gouk2021.log_mars([3, 2], [0.5, 0.25]) - 0.5 * math.log(100)) == pytest.approx(0.7, abs=1e-12)
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    net[0].weight.data, net[2].weight.data = W1, W2
    x = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    s = gm.subject(net, net, [(x, net(x).argmax(1))], device="cpu")
    assert math.exp(log_path_norm(s)) == pytest.approx(5, rel=1e-12)
    assert math.exp(gonon2024.log_theorem(math.log(5), 1, 100, 2, 2, 2)) == pytest.approx(4.5111401376, abs=1e-9)
    assert math.exp(gonon2024.log_sharpened(math.log(5), 1, 100, 2, 2, 2)) == pytest.approx(3.9944882258, abs=1e-9)


def test_gonon_beside_its_literal_twin():
    s = chain()
    weights = [layer.module.weight.detach().abs() for layer in s.layers]
    paths = sum(float(weights[2][o, j] * weights[1][j, h] * weights[0][h, i]) for o in range(3) for j in range(6)
                for h in range(8) for i in range(4))
    assert math.exp(log_path_norm(s)) == pytest.approx(paths, rel=1e-10)
    squares = math.exp(log_path_norm(s, 2.0))
    assert squares == pytest.approx((weights[2] ** 2 @ weights[1] ** 2 @ weights[0] ** 2).sum().item(), rel=1e-10)
    reach = max(1.0, torch.cat([b.inputs[0] for b in s.train]).abs().max().item())
    wrong = gm.measure(s, "gonon2024").set_index("term")["value"]["margin-error"]
    for variant, inside in (("sharpened", 3 * math.log(3) + math.log(5 * 3)),
                            ("theorem", 3 * math.log(3) + math.log(3 * 5 * 3))):
        value = wrong + 4 * reach / math.sqrt(30) * math.sqrt(inside) * paths / margin_of(s)
        assert total(s, "gonon2024", variant=variant) == pytest.approx(value, rel=1e-9)


def test_gonon_with_pooling_beside_its_literal_twin():
    """One kind of pooling, windows of four: K = 4 and P = 1; a window's paths add up."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                            nn.Linear(8, 3, bias=False)).double()
        x = torch.randn(20, 1, 6, 6).double()
    s = gm.subject(net, net, Batches.from_arrays(x, net(x).argmax(1)), dtype="float64", device="cpu")
    kernels, head = net[0].weight.detach().abs(), net[4].weight.detach().abs()
    paths = sum(float(head[o, 4 * c + 2 * a + b]) * 4 * float(kernels[c].sum())
                for o in range(3) for c in range(2) for a in range(2) for b in range(2))
    assert math.exp(log_path_norm(s)) == pytest.approx(paths, rel=1e-10)
    wrong = gm.measure(s, "gonon2024").set_index("term")["value"]["margin-error"]
    for variant, inside in (("sharpened", 2 * math.log(3) + math.log(4) + math.log(37 * 3)),
                            ("theorem", 2 * math.log(5 * 4) + math.log(5 / 2 * 37 * 3))):
        value = wrong + 4 * max(1.0, x.abs().max().item()) / math.sqrt(20) * math.sqrt(inside) * paths / margin_of(s)
        assert total(s, "gonon2024", variant=variant) == pytest.approx(value, rel=1e-9)


INVARIANT = [("neyshabur2018", {"variant": "table"}), ("neyshabur2018", {"variant": "code"}), ("pitas2017", {}),
             ("ju2022", {}), ("ju2022-trace", {}), ("bartlett2017", {"variant": "zero"}), ("gonon2024", {}),
             ("arora2018", {}), ("arora2018", {"variant": "theorem"})]


@pytest.mark.parametrize(("name", "parameters"), INVARIANT)
def test_t1_moving_scale_between_layers_changes_nothing(name, parameters):
    assert total(chain(scale=10), name, **parameters) == pytest.approx(total(chain(), name, **parameters), rel=1e-7)


@pytest.mark.parametrize(("name", "parameters"), [("long2020", {"variant": "theorem"})])
def test_t1_what_is_not_invariant(name, parameters):
    assert total(chain(scale=10), name, **parameters) > 1.2 * total(chain(), name, **parameters)


def test_t1_cushions_are_invariant_and_sums_of_norms_are_not():
    """Nor is PAC-Bayes with one sigma for all weights, by its KL at a fixed sigma."""
    plain, scaled = chain(), chain(scale=10)
    terms = ["layer-cushion", "interlayer-cushion", "contraction"]
    cushions = [gm.measure(s, "cushion").set_index(["term", "layer"])["value"][terms].to_numpy()
                for s in (plain, scaled)]
    np.testing.assert_allclose(*cushions, rtol=1e-9)
    norms = [gm.measure(s, "jiang2020").set_index("term")["value"] for s in (plain, scaled)]
    assert norms[1]["param-norm"] > 2 * norms[0]["param-norm"]
    assert norms[1]["fro-over-spec"] == pytest.approx(norms[0]["fro-over-spec"], rel=1e-9)
    assert norms[1]["path-norm"] == pytest.approx(norms[0]["path-norm"], rel=1e-9)
    squares = [sum(s.displacement(x).square().sum().item() for x in s.layers) for s in (plain, scaled)]
    kl = [pacbayes_kl.isotropic([q], 1, [20]).kl for q in squares]
    assert kl[1] > 2 * kl[0]


def test_t1_only_the_fine_tuned_weights_rescaled():
    """H scales as a^-2 and v does not scale: v'Hv changes; so does Gouk's table with a fixed reference."""
    for name in ("ju2022", "gouk2021"):
        assert total(chain(scale=10, rescale_start=False), name) != pytest.approx(total(chain(), name), rel=0.1)


@pytest.mark.parametrize(("name", "parameters"), [
    ("neyshabur2018", {"variant": "table"}), ("arora2018", {}), ("bartlett2017", {"variant": "zero"})])
def test_t2_scaling_the_logits_leaves_the_normalised_margin(name, parameters):
    assert total(chain(logit=7, reference_head=False), name, **parameters) == pytest.approx(
        total(chain(), name, **parameters), rel=1e-8)


@pytest.mark.parametrize(("name", "parameters"), [("pitas2017", {}), ("bartlett2017", {})])
def test_t2_with_a_reference_only_if_its_head_is_scaled_too(name, parameters):
    assert total(chain(logit=7), name, **parameters) == pytest.approx(total(chain(), name, **parameters), rel=1e-8)
    assert total(chain(logit=7, reference_head=False), name, **parameters) != pytest.approx(
        total(chain(), name, **parameters), rel=1e-2)


@pytest.mark.parametrize(("name", "parameters"), [
    ("pitas2017", {}), ("long2020", {}), ("gouk2021", {}), ("bartlett2017", {}),
    ("arora2018", {"examples": 30}), ("ju2022-trace", {}), ("ju2022-consistent", {}),
    ("zhang2024", {"variant": "max"})])
def test_t3_four_times_the_examples_halve_a_table_form(name, parameters):
    assert total(chain(copies=4), name, **parameters) == pytest.approx(total(chain(), name, **parameters) / 2, rel=1e-7)


def test_t4_what_divides_by_the_margin():
    s = chain()
    ratio = margin_of(s, 0.3) / margin_of(s, 0.1)
    for name in ("neyshabur2018", "pitas2017", "arora2018", "bartlett2017"):
        parameters = {"variant": "table"} if name != "bartlett2017" else {}
        values = [total(s, name, percentile=p, **parameters) for p in (0.1, 0.3)]
        assert values[0] / values[1] == pytest.approx(ratio, rel=1e-8), name
    for name in ("gouk2021", "long2020"):
        assert total(s, name, percentile=0.1) == total(s, name, percentile=0.3)


@pytest.mark.parametrize(("name", "parameters"), [
    ("pitas2017", {}), ("long2020", {}), ("gouk2021", {}), ("bartlett2017", {}), ("ju2022-trace", {}),
    ("ju2022-consistent", {}), ("zhang2024", {}), ("zhang2024", {"variant": "max"})])
def test_t5_no_distance_gives_zero(name, parameters):
    assert total(chain(moved=0), name, **parameters) == 0


def test_t6_depth_one():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, start = (nn.Linear(3, 2, bias=False).double() for _ in range(2))
        x = torch.randn(25, 3).double()
    s = gm.subject(net, start, Batches.from_arrays(x, net(x).argmax(1)), dtype="float64", device="cpu")
    w, v, gamma = net.weight.detach().numpy(), (net.weight - start.weight).detach().numpy(), margin_of(s)
    assert total(s, "pitas2017") == pytest.approx(np.linalg.norm(v) / (gamma * 5), rel=1e-9)
    assert total(s, "gouk2021") == pytest.approx(2 * mars(v) / 5, rel=1e-9)
    assert total(s, "bartlett2017", variant="zero") == pytest.approx(
        x.norm().item() * two_one(w) / (gamma * 25), rel=1e-8)
    frame = gm.measure(s, "cushion", examples=25).set_index("term")["value"]
    expected = min(np.linalg.norm(w @ row) / (np.linalg.norm(w) * np.linalg.norm(row)) for row in x.numpy())
    assert frame["layer-cushion"] == pytest.approx(expected, rel=1e-9)
    out = max(np.linalg.norm(w @ row) for row in x.numpy())
    assert total(s, "arora2018", examples=25) == pytest.approx(
        out / gamma * math.sqrt(2 / expected**2 / 25), rel=1e-9)  # mu_i-> = 1/sqrt(2)


def test_t7_squared_loss_and_softmax():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, start = (nn.Linear(3, 1, bias=False).double() for _ in range(2))
        x, y = torch.randn(16, 3).double(), torch.randn(16, 1).double()
    s = gm.subject(net, start, Batches.from_arrays(x, y), loss="squared", dtype="float64", device="cpu")
    v = (net.weight - start.weight).detach()[0]
    c = ((net(x) - y) ** 2 / 2).max().item()
    assert total(s, "ju2022") == pytest.approx(math.sqrt(c / 16) * (x @ v).abs().max().item(), rel=1e-9)
    trace = math.sqrt(c / 16) * v.norm().item() * x.norm(dim=1).max().item()
    assert total(s, "ju2022-trace") == pytest.approx(trace, rel=1e-9)
    assert total(s, "zhang2024", variant="max") == pytest.approx(trace, rel=1e-9)
    mean = math.sqrt(c / 16 * x.square().sum(1).mean().item()) * v.norm().item()
    assert total(s, "zhang2024", variant="mean") == pytest.approx(mean, rel=1e-6)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net, start = (nn.Linear(3, 4, bias=False).double() for _ in range(2))
    s = gm.subject(net, start, Batches.from_arrays(x, torch.arange(16) % 4), dtype="float64", device="cpu")
    v, p = (net.weight - start.weight).detach(), net(x).softmax(1).detach()
    moved = x @ v.T
    variance = (p * moved**2).sum(1) - (p * moved).sum(1) ** 2
    c = nn.functional.cross_entropy(net(x), torch.arange(16) % 4, reduction="none").max().item()
    assert total(s, "ju2022") == pytest.approx(math.sqrt(c * variance.max().item() / 16), rel=1e-8)
    traces = (1 - (p**2).sum(1)) * x.square().sum(1)
    trace = math.sqrt(c * traces.max().item() / 16) * v.norm().item()
    assert total(s, "ju2022-trace") == pytest.approx(trace, rel=1e-8)


@pytest.mark.parametrize("seed", range(20))
def test_t8_cushions_of_convolutions_stay_below_the_factor_that_pays_for_them(seed):
    """bounds.md T8: mu <= |op| / |K|_F <= ceil(k/s), or the taps on a pixel if dilated; equal for the top direction."""
    draw = np.random.default_rng(seed)
    k, stride, padding, dilation, groups = (int(draw.integers(1, high)) for high in (5, 4, 3, 3, 3))
    side = (k - 1) * dilation + 1 + int(draw.integers(0, 6))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        conv = nn.Conv2d(2 * groups, 3 * groups, k, stride, padding, dilation, groups, bias=False).double()
        conv.weight.data = torch.rand_like(conv.weight) if seed % 2 else conv.weight.data
        units = torch.eye(2 * groups * side**2).double().reshape(-1, 2 * groups, side, side)
        op = conv(units).detach().flatten(1).T
        net = nn.Sequential(conv, nn.Flatten(), nn.Linear(len(op), 2, bias=False)).double()
        x = torch.randn(6, *units.shape[1:]).double()
    _, sizes, directions = torch.linalg.svd(op, full_matrices=False)
    ratio = (sizes[0] / conv.weight.norm()).item()
    stretched = directions[0].reshape(1, *units.shape[1:]).repeat(6, 1, 1, 1)
    found = []
    for inputs in (x, stretched):
        s = gm.subject(net, net, Batches.from_arrays(inputs, torch.arange(6) % 2), dtype="float64", device="cpu")
        frame = gm.measure(s, "cushion", examples=6).set_index(["layer", "term"])["value"]
        found.append(frame["0", "layer-cushion"])
    assert found[0] <= found[1] == pytest.approx(ratio, rel=1e-9)
    assert ratio <= arora2018.patches(s.layers[0]) * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_t9_inequalities_between_norms(seed):
    """Spectral <= Frobenius <= sqrt(rank) spectral; Frobenius <= (2,1) <= sqrt(out) Frobenius; MARS <= sqrt(in) row."""
    draw = np.random.default_rng(seed)
    out, rest = int(draw.integers(1, 9)), int(draw.integers(1, 9))
    rank = int(draw.integers(1, min(out, rest) + 1))
    w = torch.from_numpy(draw.standard_normal((out, rank)) @ draw.standard_normal((rank, rest)))
    found, more = {name: norm(w) for name, norm in NORMS.items()}, 1 + 1e-12
    assert found["spectral"] <= found["frobenius"] * more
    assert found["frobenius"] <= math.sqrt(rank) * found["spectral"] * more
    assert found["frobenius"] <= found["two-one"] * more
    assert found["two-one"] <= math.sqrt(out) * found["frobenius"] * more
    longest = max(math.sqrt(sum(v * v for v in row)) for row in w.tolist())
    assert longest <= found["mars"] * more <= math.sqrt(rest) * longest * more**2
    equal = torch.ones(out, rest, dtype=torch.float64)  # rows of one length and entries of one size
    assert NORMS["two-one"](equal) == pytest.approx(math.sqrt(out) * NORMS["frobenius"](equal))
    assert NORMS["mars"](equal) == pytest.approx(math.sqrt(rest) * math.sqrt(rest))


def test_t9_inequalities_between_the_hessian_bounds():
    s = chain(moved=0.5)
    form, trace, joint = (total(s, n, **p) for n, p in (("ju2022", {}), ("ju2022-trace", {}),
                                                       ("zhang2024", {"variant": "max"})))
    assert form <= trace <= joint


@pytest.mark.parametrize("name", ["neyshabur2018", "pitas2017", "gouk2021", "long2020", "li2021", "gonon2024",
                                  "bartlett2017", "ju2022-trace", "arora2018"])
def test_t10_permuting_hidden_units_changes_nothing(name):
    parameters = {"variant": "table"} if name in ("neyshabur2018", "li2021") else {}
    expected = {k: pytest.approx(v, rel=1e-8) for k, v in [("total", total(chain(), name, **parameters))]}
    assert {"total": total(chain(permuted=True), name, **parameters)} == expected


def test_t10_copies_of_the_examples_break_the_certificates_assumption():
    rows = gm.measure(chain(copies=2), "lotfi2022")
    assert set(rows["kind"]) == {"measure"}
    assert rows.loc[rows["term"] == "assumes:distinct-examples", "value"].item() == 0
    assert set(gm.measure(chain(), "lotfi2022")["kind"]) == {"certificate"}


@pytest.mark.parametrize("name", ["ju2022", "ju2022-trace"])
def test_t11_the_largest_example_does_not_depend_on_the_batch_size(name):
    assert total(chain(batch_size=7), name) == pytest.approx(total(chain(batch_size=30), name), rel=1e-10)


GOLDEN_ROW_SUMS = [(2, 0.2, 1.66667), (2, 0.3, 2.5), (2, 0.4, 5.0), (5, 0.2, 1.53333), (5, 0.4, 2.6), (5, 0.6, 5.8),
                   (10, 0.4, 2.44), (67, 0.2, 1.5019011), (67, 0.4, 2.3469388), (67, 0.6, 4.0697674),
                   (67, 0.8, 9.5161290), (100, 0.3, 1.8608696), (100, 0.4, 2.3423729)]


@pytest.mark.parametrize(("classes", "rate", "golden"), GOLDEN_ROW_SUMS)
def test_t12_row_sums_of_the_inverse_of_symmetric_noise(classes, rate, golden):
    confusion = ju2022_consistent.symmetric_confusion(rate, classes)
    assert ju2022_consistent.inverse_row_sum(confusion) == pytest.approx(golden, abs=1e-5)
    closed = (classes - 1 + (classes - 2) * rate) / (classes - 1 - classes * rate)
    assert ju2022_consistent.inverse_row_sum(confusion) == pytest.approx(closed, rel=1e-9)
    torch.testing.assert_close(inverse_confusion(confusion).sum(1), torch.ones(classes, dtype=torch.float64))


@pytest.mark.parametrize(("classes", "rate", "golden"), [(5, 0.2, 1.4), (5, 0.4, 2.0666667), (5, 0.6, 3.4),
                                                         (67, 0.2, 1.4925373)])
def test_t12_row_sums_where_the_true_class_is_among_those_drawn(classes, rate, golden):
    confusion = ju2022_consistent.symmetric_confusion(rate * (classes - 1) / classes, classes)
    assert ju2022_consistent.inverse_row_sum(confusion) == pytest.approx(golden, abs=1e-6)


def test_t12_the_consistent_loss_of_five_classes():
    confusion = ju2022_consistent.symmetric_confusion(0.2, 5)
    inverse = inverse_confusion(confusion)
    assert inverse[0, 0].item() == pytest.approx(1.2666667, abs=1e-6)
    assert inverse[0, 1].item() == pytest.approx(-0.0666667, abs=1e-6)
    losses = torch.arange(1.0, 6).double()
    found = torch.stack([corrected(losses[None], torch.tensor([j]), inverse)[0] for j in range(5)])
    torch.testing.assert_close(found, torch.tensor([1 / 3, 5 / 3, 3, 13 / 3, 17 / 3]).double())
    torch.testing.assert_close(confusion @ found, losses)
    identity = ju2022_consistent.symmetric_confusion(0.0, 5)
    assert ju2022_consistent.inverse_row_sum(identity) == 1
    torch.testing.assert_close(corrected(losses[None], torch.tensor([3]), inverse_confusion(identity))[0], losses[3])


def test_t12_singular_noise_is_refused_and_inverted_labels_are_not():
    with pytest.raises(InputError, match=r"\(classes - 1\) / classes$"):
        inverse_confusion(ju2022_consistent.symmetric_confusion(0.8, 5))
    found = inverse_confusion(ju2022_consistent.symmetric_confusion(0.8, 2))
    torch.testing.assert_close(found, torch.tensor([[-1.0, 4.0], [4.0, -1.0]]).double() / 3)


def test_the_factor_of_the_consistent_form():
    s = chain(moved=0.5)
    plain = total(s, "ju2022-trace")
    assert total(s, "ju2022-consistent") == pytest.approx(plain, rel=1e-9)
    assert total(s, "ju2022-consistent", rate=0.2) == pytest.approx(
        plain * math.sqrt((2 + 1 * 0.2) / (2 - 3 * 0.2)), rel=1e-9)
    with pytest.raises(InputError, match="share of wrong labels, from 0 to below 1$"):
        gm.measure(s, "ju2022-consistent", rate=1.0)


def test_the_confusion_of_data_that_bring_true_labels():
    s = chain()
    clean = s.train.labels
    given = clean.clone()
    given[:3] = (given[:3] + 1) % 3
    x = torch.cat([b.inputs[0] for b in s.train])
    noisy = gm.subject(s.model, dict(s.start), Batches.from_arrays(x, given, clean), dtype="float64", device="cpu")
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for a, b in zip(clean.tolist(), given.tolist(), strict=True):
        expected[a, b] += 1
    found = ju2022_consistent.confusion_of(noisy, None)
    torch.testing.assert_close(found, expected / expected.sum(1, keepdim=True))


def test_the_sum_of_a_layer_beside_its_literal_twin():
    found = [Cushion(0.2, Estimate(0.1, 0.01, 8), 1.5, Estimate(1.2, 0.1, 8)),
             Cushion(0.4, Estimate(0.5), 1.0, Estimate(1.0))]
    value = arora2018.log_layer_sum(found, [3, 1])
    expected = 1.2 * 1.5**2 * 9 / (0.2**2 * 0.1**2) + 1 / (0.4**2 * 0.5**2)
    assert value.value == pytest.approx(math.log(expected))
    first = 1.2 * 1.5**2 * 9 / (0.2**2 * 0.1**2)
    assert value.stderr == pytest.approx(first / expected * math.sqrt((0.1 / 1.2) ** 2 + (2 * 0.01 / 0.1) ** 2))


@pytest.mark.parametrize("activation", [dense.RELU, dense.TANH], ids=["relu", "tanh"])
def test_the_hessian_bounds_beside_dense_hessians(activation):
    """ReLU: everything is exact. tanh: the forms to the width of their bracket; traces are drawn (slow test)."""
    s = dense.make(activation, examples=5)
    truth, n, exact = dense.Dense(s), 5, activation is dense.RELU
    hessians = [truth.hessian(slice(i, i + 1)) for i in range(n)]
    c = max(truth.loss(truth.point, slice(i, i + 1)).item() for i in range(n))
    forms, traces, sizes = [], [], []
    for layer, rows in zip(s.layers, truth.rows, strict=True):
        v = s.displacement(layer).reshape(-1)
        values, vectors = torch.linalg.eigh(torch.stack([h[rows, rows] for h in hessians]))
        forms.append((values.clamp(min=0) * (v @ vectors) ** 2).sum(1).max().item())
        traces.append(values.clamp(min=0).sum(1).max().item())
        sizes.append(v.norm().item())
    ju = math.sqrt(c / n) * sum(map(math.sqrt, forms))
    assert total(s, "ju2022") == pytest.approx(ju, rel=1e-7 if exact else 0.02)
    if not exact:
        return
    by_trace = math.sqrt(c / n) * sum(math.sqrt(t) * d for t, d in zip(traces, sizes, strict=True))
    assert total(s, "ju2022-trace") == pytest.approx(by_trace, rel=1e-7)
    factor = torch.linalg.inv(torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])).abs().sum(1).max()
    assert total(s, "ju2022-consistent", rate=0.2) == pytest.approx(by_trace * math.sqrt(factor), rel=1e-6)
    joint = math.sqrt(c * sum(traces) * sum(d * d for d in sizes) / n)
    assert total(s, "zhang2024", variant="max") == pytest.approx(joint, rel=1e-7)
    mean = sum(torch.trace(sum(hessians)[rows, rows]).item() / n for rows in truth.rows)
    assert total(s, "zhang2024", variant="mean") == pytest.approx(
        math.sqrt(c * mean * sum(d * d for d in sizes) / n), rel=1e-6)


@pytest.mark.parametrize("network", ["attention", "layer norm"])
def test_norm_bounds_are_not_defined_for_attention_and_layer_norm(network):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.head = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3)

        def forward(self, x):
            x = self.first(x)
            if network == "attention":
                return self.head(((x[:, :, None] * x[:, None]).softmax(2) @ x[:, :, None]).squeeze(-1))
            return self.head(self.norm(x))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, x = Net(), torch.randn(12, 4)
    if network == "attention":
        net.norm = nn.Identity()
    s = gm.subject(net, net, [(x, torch.arange(12) % 3)], device="cpu")
    why = {"attention": "a softmax (attention)", "layer norm": "LayerNorm"}[network]
    assert expressible(s) == f"the theorem has no expression for {why}"
    for name in ("pitas2017", "arora2018", "long2020", "gouk2021", "li2021", "neyshabur2018", "bartlett2017"):
        (row,) = gm.measure(s, name).to_dict("records")
        assert (row["term"], row["error"]) == ("not-defined", "")
        assert why in row["params"]
    assert "not-defined" not in set(gm.measure(s, "ju2022")["term"])


def test_a_logarithmic_sum():
    assert log_sum([]) == -math.inf
    assert log_sum([-math.inf, -math.inf]) == -math.inf
    assert log_sum([1000.0, 1000.0]) == pytest.approx(1000 + math.log(2))
    assert log_sum([0.0, math.inf]) == math.inf


@pytest.mark.parametrize("name", ["pitas2017", "long2020", "gouk2021", "bartlett2017", "arora2018", "gonon2024",
                                  "zhang2024"])
def test_an_unknown_variant_is_named(name):
    with pytest.raises(InputError, match=r"(did you mean '\w+'\?|known are: .*)$"):
        gm.measure(chain(), name, variant="none such")


def test_a_percentile_and_a_delta_out_of_range():
    with pytest.raises(InputError, match="a share of the examples, from 0 to 1$"):
        gm.measure(chain(), "bartlett2017", percentile=2.0)
    with pytest.raises(InputError, match="the bound fails, between 0 and 1$"):
        gm.measure(chain(), "pitas2017", delta=0.0)


@pytest.mark.slow
def test_traces_of_the_positive_part_beside_dense_hessians():
    """A smooth network: the trace drawn for the chosen example against the dense Hessians of all examples."""
    s = dense.make(dense.TANH, batch_size=12)
    truth = dense.Dense(s)
    blocks = [truth.hessian(slice(i, i + 1)) for i in range(12)]
    traces = torch.stack([torch.stack([torch.linalg.eigvalsh(block[rows, rows]).clamp(min=0).sum()
                                       for rows in truth.rows]) for block in blocks])
    found = [largest_positive_traces(s.risk, candidates=24, probes=16, steps=20, seed=seed) for seed in range(6)]
    for i, layer in enumerate(s.layers):
        each = [f[layer.name] for f in found]
        if each[0].exact:
            assert layer.head
            assert each[0].value == pytest.approx(traces[:, i].max().item(), rel=1e-9)
            continue
        z = torch.tensor([(e.value - traces[:, i].max().item()) / e.stderr for e in each])
        assert abs(z.mean()) < 4 / len(z) ** 0.5
        assert z.abs().max() < 5


def test_contributions_carry_their_standard_error():
    found = ju2022_trace.contribution(4.0, Estimate(9.0, 0.6, 16), 2.0, 100)
    assert (found.value, found.n) == (pytest.approx(1.2), 16)
    assert found.stderr == pytest.approx(1.2 * 0.6 / 18)
    assert long2020.log_table([1.0], [0.0], 5, 10) == -math.inf
    assert pitas2017.CONVOLUTION_NOISE == 1.4
