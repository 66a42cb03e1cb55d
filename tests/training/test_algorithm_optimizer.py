"""Algorithms around an optimizer, in a loop of one's own: the same steps as in the package's loop."""

import copy

import pytest
import torch
from torch import nn

from genmeasure.errors import InputError
from genmeasure.training.algorithm import Algorithm, get_algorithm
from genmeasure.training.algorithm_optimizer import AlgorithmOptimizer
from genmeasure.training.constraints.layer_balls import LayerBalls
from genmeasure.training.context import Context
from genmeasure.training.examples import shuffled_rows, whole
from genmeasure.training.loop import Settings, fine_tune
from genmeasure.training.penalties.distance import DistanceToStart
from genmeasure.training.probes.uphill import Uphill

ALGORITHMS = {
    "plain": Algorithm(), "sam": get_algorithm("sam"), "nso": get_algorithm("nso", sigma=0.02, draws=2),
    "noise-injection": get_algorithm("noise-injection", sigma=0.02),
    "sam with a pull and balls": Algorithm(probe=Uphill(0.1), penalty=DistanceToStart(0.1), constraint=LayerBalls(0.2))}
SETTINGS = Settings(epochs=2, batch_size=32, learning_rate=0.05, optimizer="sgd", device="cpu")


def own_loop(net, train, algorithm, style, scaler=None, probe_seed=0):
    x, y = torch.cat([b.inputs[0] for b in train]), torch.cat([b.targets for b in train])
    order = torch.Generator().manual_seed(0)
    base = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    optimizer = AlgorithmOptimizer(base, net, algorithm, generator=torch.Generator().manual_seed(probe_seed),
                                   scaler=scaler)
    net.train()
    for number in (1, 2):
        optimizer.begin_epoch(number)
        for rows in shuffled_rows(len(y), 32, order):
            def loss(rows=rows):
                return nn.functional.cross_entropy(net(x[rows]), y[rows])

            def closure(loss=loss):
                optimizer.zero_grad()
                value = loss()
                value.backward()
                return value
            optimizer.step(closure) if style == "closure" else optimizer.step(loss=loss)
    return net


@pytest.mark.parametrize("style", ["closure", "loss", "scaled loss"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_same_steps_as_in_the_loop(name, style, net, train):
    net.drop.p = 0.0
    expected = fine_tune(net, ALGORITHMS[name], train, settings=SETTINGS).model
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if style == "scaled loss" else None
    found = own_loop(copy.deepcopy(net), train, ALGORITHMS[name], style, scaler)
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sam", "nso"])
def test_a_closure_may_accumulate(name, net, train):
    """Without layers that look at the batch, parts of a minibatch give what the whole gives."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.GELU(), nn.Linear(16, 10))
    x, y = torch.cat([b.inputs[0] for b in train])[:64], torch.cat([b.targets for b in train])[:64]
    found = []
    for parts in (1, 4):
        model = copy.deepcopy(net)
        optimizer = AlgorithmOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, ALGORITHMS[name],
                                       generator=torch.Generator().manual_seed(0))

        def closure(model=model, parts=parts, optimizer=optimizer):
            optimizer.zero_grad()
            losses = []
            for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
                losses.append(nn.functional.cross_entropy(model(a), b) / parts)
                losses[-1].backward()
            return torch.stack(losses).sum()
        for _ in range(3):
            optimizer.step(closure)
        found.append(nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def ranks_steps(rank, folder):
    """What each of two ranks does."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for name in ("sam", "nso", "sam with a pull and balls"):
        torch.save(on_half_the_data(name, rank), f"{folder}/{name}-{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def on_half_the_data(name, rank):
    model, x, y = ranks_problem()
    x, y = x[rank::2], y[rank::2]
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = AlgorithmOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), wrapped, ALGORITHMS[name],
                                   generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        optimizer.step(loss=lambda: nn.functional.cross_entropy(wrapped(x), y))
    return model.state_dict()


def ranks_problem():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 2))
        x = torch.randn(32, 6)
    return model, x, (x[:, 0] * x[:, 1] > 0).long()


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one(tmp_path):
    torch.multiprocessing.spawn(ranks_steps, (str(tmp_path),), nprocs=2)
    for name in ("sam", "nso", "sam with a pull and balls"):
        model, x, y = ranks_problem()
        optimizer = AlgorithmOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, ALGORITHMS[name],
                                       generator=torch.Generator().manual_seed(0))
        for _ in range(3):
            optimizer.step(loss=lambda m=model, a=x, b=y: nn.functional.cross_entropy(m(a), b))
        for rank in (0, 1):
            found = torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True)
            for key, value in model.state_dict().items():
                torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)


def test_plain_gradient_needs_no_closure(net, train):
    optimizer = AlgorithmOptimizer(torch.optim.AdamW(net.parameters(), lr=0.1), net, "layer-ball")
    optimizer.algorithm.constraint.balls[0].center.zero_()
    net(torch.ones(4, 1, 8, 8)).square().mean().backward()
    optimizer.step()
    for ball in optimizer.algorithm.constraint.balls:
        assert (net.get_parameter(ball.name) - ball.center).norm() <= ball.radius * (1 + 1e-4)


def test_an_overflow_skips_the_step(net):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    optimizer = AlgorithmOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), net, "sam", scaler=scaler)
    before = {k: v.clone() for k, v in net.named_parameters()}
    optimizer.step(loss=lambda: net(torch.full((4, 1, 8, 8), 50.0)).square().mean() * 1e4)
    assert all(torch.equal(before[k], v) for k, v in net.named_parameters())
    assert scaler.get_scale() == 2.0**126


def test_schedulers_and_state_are_the_optimizers(net):
    base = torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.9)
    optimizer = AlgorithmOptimizer(base, net, "plain")
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    net(torch.ones(4, 1, 8, 8)).mean().backward()
    optimizer.step()
    schedule.step()
    assert base.param_groups[0]["lr"] == 0.5
    saved = copy.deepcopy(optimizer.state_dict())
    assert saved["state"]
    optimizer.load_state_dict(saved)
    assert optimizer.state is base.state
    assert optimizer.param_groups is base.param_groups
    extra = nn.Parameter(torch.ones(1))
    optimizer.add_param_group({"params": [extra]})
    assert base.param_groups[1]["params"] == [extra]


def error_of(call):
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


def test_errors_say_what_to_do(net):
    base = torch.optim.SGD(net.parameters(), lr=1.0)
    assert error_of(lambda: AlgorithmOptimizer(base, net, "early-stopping")).endswith(
        "use genmeasure.training.loop.fine_tune")
    optimizer = AlgorithmOptimizer(base, net, "sam")
    assert error_of(optimizer.step).endswith("pass a closure or loss=…")
    assert error_of(lambda: optimizer.step(lambda: None)).endswith("after it has called backward()")
    scaled = AlgorithmOptimizer(base, net, "sam", scaler=torch.amp.GradScaler("cpu"))
    assert error_of(lambda: scaled.step(lambda: None)).endswith("pass loss=…")


def test_an_algorithm_that_looks_at_its_predictions_asks_for_them(net, train):
    algorithm = get_algorithm("self-labeling", radius=None, correct_from=2)
    optimizer = AlgorithmOptimizer(torch.optim.SGD(net.parameters(), lr=1.0), net, algorithm,
                                   context=Context.of(net, examples=whole(train)))
    optimizer.begin_epoch(1)
    assert error_of(lambda: optimizer.begin_epoch(2)).endswith("pass predict=… to begin_epoch")
    optimizer.begin_epoch(2, lambda: 100 * torch.eye(10)[torch.zeros(len(train.labels), dtype=torch.long)])
    assert (optimizer.algorithm.loss.labels == 0).all()
