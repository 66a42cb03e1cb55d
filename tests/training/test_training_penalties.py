"""Penalties by hand: row sums, weights by layer, weight decay."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from genmeasure.errors import InputError
from genmeasure.training.context import Context
from genmeasure.training.loop import fine_tune
from genmeasure.training.penalties.distance import DistanceToStart
from genmeasure.training.penalties.row_sums import RowSumsToStart
from genmeasure.training.penalties.weight_decay import SquaredNorm


@pytest.fixture
def net64(net):
    return net.double()


def moved(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn(p.shape, generator=generator, dtype=p.dtype)


def test_row_sums_value_and_subgradient(net64):
    start = {name: p.detach().clone() for name, p in net64.named_parameters()}
    penalty = RowSumsToStart(0.3, 0.7, biases=True).prepare(Context.of(net64, head="head"))
    moved(net64)
    value = penalty(net64)
    value.backward()
    expected = 0.0
    for name, p in net64.named_parameters():
        head = name.startswith("head.")
        difference = p.detach() - (0 if head else start[name])
        rows = difference.reshape(len(difference), -1)
        largest = rows.abs().sum(1).argmax()
        expected += (0.7 if head else 0.3) * rows[largest].abs().sum().item()
        slope = torch.zeros_like(rows)
        slope[largest] = (0.7 if head else 0.3) * rows[largest].sign()
        torch.testing.assert_close(p.grad, slope.reshape(p.shape))
    assert value.item() == pytest.approx(expected)


def test_row_sums_are_flat_at_the_start(net64):
    RowSumsToStart().prepare(Context.of(net64, head="head"))(net64).backward()
    assert not net64.conv1.weight.grad.any()
    assert net64.head.weight.grad.isfinite().all()


def test_embeddings_have_no_row_sums():
    model = nn.Sequential(nn.Embedding(3, 2), nn.LayerNorm(2), nn.Linear(2, 2), nn.Linear(2, 2))
    assert list(RowSumsToStart().prepare(Context.of(model)).pulls) == ["1.weight", "2.weight", "3.weight"]


def test_weights_by_depth_and_by_name(net64):
    context = Context.of(net64, head="head")
    pulls = DistanceToStart(0.5, 0.7, growth=3.0).prepare(context).pulls
    assert {name: weight for name, (weight, _) in pulls.items()} == {
        "conv1.weight": 0.5, "conv1.bias": 0.5, "bn1.weight": 0.5, "bn1.bias": 0.5, "conv2.weight": 1.5,
        "conv2.bias": 1.5, "bn2.weight": 1.5, "bn2.bias": 1.5, "head.weight": 0.7, "head.bias": 0.7}
    assert not pulls["head.weight"][1].any()
    pulls = DistanceToStart({"conv2": 0.1, "*.weight": 0.2}).prepare(context).pulls
    assert {name: weight for name, (weight, _) in pulls.items() if not name.startswith("head")} == {
        "conv1.weight": 0.2, "bn1.weight": 0.2, "conv2.weight": 0.1, "conv2.bias": 0.1, "bn2.weight": 0.2}


def quadratic(size=4):
    g = torch.Generator().manual_seed(3)
    root = torch.randn(size, size, generator=g, dtype=torch.float64)
    return root @ root.T + torch.eye(size), torch.randn(size, generator=g, dtype=torch.float64)


class Pair(nn.Module):
    """Two linear layers; the first has a quadratic loss with the matrix A and the least value at t."""

    def __init__(self):
        super().__init__()
        self.matrix, self.target = quadratic()
        self.body = nn.Linear(4, 1, bias=False, dtype=torch.float64)
        self.head = nn.Linear(1, 1, bias=False, dtype=torch.float64)

    def forward(self):
        difference = self.body.weight[0] - self.target
        return 0.5 * difference @ self.matrix @ difference


def minimised(model, penalty):
    optimizer = torch.optim.LBFGS([model.body.weight], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15,
                                  line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = model() + penalty(model)
        value.backward()
        return value
    optimizer.step(loss)
    return model.body.weight.detach()[0]


def test_penalised_minimum_of_l2_sp():
    """(A + 2 lambda I) w = A t + 2 lambda w_start."""
    model = Pair()
    start, eye = model.body.weight.detach()[0].clone(), torch.eye(4, dtype=torch.float64)
    found = minimised(model, DistanceToStart(0.3).prepare(Context.of(model)))
    expected = torch.linalg.solve(model.matrix + 0.6 * eye, model.matrix @ model.target + 0.6 * start)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_penalised_minimum_of_weight_decay():
    """(A + lambda I) w = A t."""
    model = Pair()
    found = minimised(model, SquaredNorm(0.3).prepare(Context.of(model)))
    expected = torch.linalg.solve(model.matrix + 0.3 * torch.eye(4, dtype=torch.float64), model.matrix @ model.target)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_penalised_minimum_of_mars_sp():
    """For a round bowl and one row, soft thresholding of t - w_start at lambda; no point near it is lower."""
    model = Pair()
    model.matrix = torch.eye(4, dtype=torch.float64)
    start = model.body.weight.detach().clone()
    penalty = RowSumsToStart(0.5, 0.0).prepare(Context.of(model))
    difference = model.target - start
    best = start + difference.sign() * (difference.abs() - 0.5).clamp(min=0)
    values, generator = [], torch.Generator().manual_seed(0)
    for size in (0.0, *[1e-3] * 200, *[0.1] * 200):
        with torch.no_grad():
            model.body.weight.copy_(best + size * torch.randn(best.shape, generator=generator, dtype=best.dtype))
            values.append((model() + penalty(model)).item())
    assert min(values[1:]) > values[0]
    assert 0 < (best == start).sum() < 4


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_weight_decay_is_the_optimizers_l2_form(net, train, settings, optimizer):
    from genmeasure.training.algorithm import Algorithm
    settings = replace(settings, optimizer=optimizer, epochs=1)
    ours = fine_tune(net.double(), Algorithm(penalty=SquaredNorm(0.05)), train, settings=settings).model
    theirs = fine_tune(net, "plain", train, settings=replace(settings, weight_decay=0.05)).model
    for name, p in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name), p, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("recipe", "end"), [
    (lambda: RowSumsToStart(-1.0), "both must be at least 0"),
    (lambda: DistanceToStart({"conv1": -1.0}), "both must be at least 0"),
    (lambda: SquaredNorm(-1.0), "both must be at least 0"),
    (lambda: RowSumsToStart(groups="rsnet"), "did you mean 'resnet'?"),
])
def test_bad_penalties(recipe, end):
    with pytest.raises(InputError) as caught:
        recipe()
    assert str(caught.value).endswith(end)
