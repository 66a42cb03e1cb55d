"""Averages of known weights, and the running statistics that go with them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from genmeasure.data.batches import Batch
from genmeasure.errors import InputError
from genmeasure.training.algorithm import get_algorithm
from genmeasure.training.averaged import averaged, refresh_statistics
from genmeasure.training.averages.exponential import ExponentialMovingAverage, StepAverage
from genmeasure.training.averages.stochastic import EpochMean, StochasticWeightAveraging
from genmeasure.training.context import Context
from genmeasure.training.evaluate import evaluate
from genmeasure.training.loop import fine_tune
from genmeasure.training.pieces import Average


def one_weight(value, dtype=torch.float64):
    model = nn.Linear(1, 1, bias=False, dtype=dtype)
    with torch.no_grad():
        model.weight.fill_(value)
    return model


def test_descent_on_a_parabola_in_closed_form():
    """w_t = (1 - rate a)^t w_0; both averages are geometric sums of it."""
    model, shrink, decay, steps = one_weight(3.0), 1 - 0.1 * 2.0, 0.9, 12
    moving, corrected, mean = StepAverage(decay, bias_correction=False), StepAverage(decay), EpochMean(begin=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(1, steps + 1):
        optimizer.zero_grad()
        model.weight.square().sum().backward()
        optimizer.step()
        for average in (moving, corrected, mean):
            average.after_step(model, epoch)
            average.after_epoch(model, epoch)
    path = [3.0 * shrink ** t for t in range(1, steps + 1)]
    assert model.weight.item() == pytest.approx(path[-1])
    assert mean.weights()["weight"].item() == pytest.approx(sum(path[4:]) / len(path[4:]))
    shares = [decay ** (steps - t) for t in range(1, steps + 1)]
    expected = sum(s * w for s, w in zip(shares, path, strict=True)) / sum(shares)
    assert corrected.weights()["weight"].item() == pytest.approx(expected)
    shares = [decay ** (steps - 1), *((1 - decay) * decay ** (steps - t) for t in range(2, steps + 1))]
    assert sum(shares) == pytest.approx(1)
    assert moving.weights()["weight"].item() == pytest.approx(sum(s * w for s, w in zip(shares, path, strict=True)))


def test_equal_weights_average_to_themselves_bit_for_bit():
    for average in (StepAverage(0.999), StepAverage(0.3), StepAverage(0.3, bias_correction=False), EpochMean(1)):
        for step in range(20):
            average.after_step(one_weight(0.1, torch.float32), step)
            average.after_epoch(one_weight(0.1, torch.float32), step)
        assert torch.equal(average.weights()["weight"], one_weight(0.1, torch.float32).weight)


def test_half_precision_is_averaged_in_float32():
    average = StepAverage(0.999, bias_correction=False)
    for value in (1.0, *[2.0] * 100):
        average.after_step(one_weight(value, torch.bfloat16), 1)
    assert average.weights()["weight"].item() == pytest.approx(2 - 0.999 ** 100, rel=1e-5)


@pytest.mark.parametrize("make", [lambda: StepAverage(0.8), lambda: EpochMean(2)])
def test_state_resumes_bit_for_bit(make):
    values = torch.randn(10, generator=torch.Generator().manual_seed(0)).tolist()
    whole, first, second = make(), make(), make()
    assert first.weights() is None
    for step, value in enumerate(values):
        if step == 6:
            second.load(first.state())
            assert all(isinstance(tensor, torch.Tensor) for tensor in first.state().values())
        for average in (whole, first if step < 6 else second):
            average.after_step(one_weight(value), step)
            average.after_epoch(one_weight(value), step)
    assert torch.equal(whole.weights()["weight"], second.weights()["weight"])
    empty = make()
    empty.load(make().state())
    assert empty.weights() is None


def test_first_epoch_and_learning_rate():
    def begins(begin, epochs):
        return StochasticWeightAveraging(begin).prepare(Context.of(nn.Linear(1, 2), epochs=epochs)).begin
    assert [begins(None, 30), begins(None, 4), begins(None, 1), begins(7, None)] == [20, 3, 1, 7]
    mean = EpochMean(3, 2e-4)
    assert [mean.learning_rate(epoch) for epoch in (1, 2, 3, 4)] == [None, None, 2e-4, 2e-4]
    assert EpochMean(1).learning_rate(5) is None


@pytest.mark.parametrize(("make", "end"), [
    (lambda: StochasticWeightAveraging(0), "epochs count from 1"),
    (lambda: StochasticWeightAveraging(learning_rate=-1.0), "it must be at least 0"),
    (lambda: StochasticWeightAveraging(5).prepare(Context.of(nn.Linear(1, 2), epochs=4)),
     "begin earlier or train longer"),
    (lambda: StochasticWeightAveraging().prepare(Context.of(nn.Linear(1, 2))),
     "give the number of the first epoch to be averaged"),
    (lambda: ExponentialMovingAverage(1.0), "it must be at least 0 and below 1"),
])
def test_bad_averages(make, end):
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).endswith(end)


class Given(Average):
    """The weights it was given."""

    def __init__(self, given):
        self.given = given

    def weights(self):
        return self.given


def batch(examples=65, features=3):
    x = torch.randn(examples, features, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 5
    return Batch(inputs=(x,), targets=torch.arange(examples) % 2, index=0)


def normed():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).double()


def test_statistics_belong_to_the_averaged_weights():
    model, examples = normed(), batch()
    model[:2](3 * examples.inputs[0])  # batches of other weights are counted already
    model.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    weight = 2 * model[0].weight.detach()
    random = torch.get_rng_state()
    with averaged(model, Given({"0.weight": weight}), examples, batch_size=65):
        outputs = nn.functional.linear(examples.inputs[0], weight, model[0].bias)
        assert torch.equal(model[0].weight, weight)
        torch.testing.assert_close(model[1].running_mean, outputs.mean(0))
        torch.testing.assert_close(model[1].running_var, outputs.var(0))
        assert not any(m.training for m in model.modules())
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model[1].momentum == 0.1


def test_mean_over_minibatches_with_no_leftover_example():
    model, examples = normed(), batch(33)
    refresh_statistics(model, examples, 16)
    assert model[1].num_batches_tracked == 2
    assert model[1].running_mean.isfinite().all()


def test_frozen_and_stateless_layers_stay_as_they_are():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False),
                          nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    model[1].eval()
    before = {k: v.clone() for k, v in model[1].state_dict().items()}
    refresh_statistics(model, batch(), 16)
    assert all(torch.equal(v, before[k]) for k, v in model[1].state_dict().items())
    assert model[2].running_mean is None
    assert model[3].num_batches_tracked > 0
    assert [m.training for m in model] == [True, False, True, True, True]


@pytest.mark.parametrize("name", ["swa", "ema"])
def test_the_average_is_returned_and_evaluated(name, net, train, validation, settings):
    settings = replace(settings, epochs=3)
    result = fine_tune(net, get_algorithm(name), train, validation, settings=settings)
    weights = result.algorithm.average.weights()
    for key, tensor in weights.items():
        assert torch.equal(result.model.get_parameter(key), tensor)
    last = result.history[-1]
    assert (last.validation_loss, last.validation_error) == evaluate(result.model, validation)
    plain = fine_tune(net, "plain", train, validation, settings=settings)
    assert [e.training_loss for e in result.history] == [e.training_loss for e in plain.history]
    assert not torch.equal(plain.model.head.weight, result.model.head.weight)


def test_stochastic_weight_averaging_is_the_mean_of_its_epochs(net, train, settings):
    ends = [fine_tune(net, "plain", train, settings=replace(settings, epochs=n)).model for n in (2, 3, 4)]
    result = fine_tune(net, get_algorithm("swa", begin=2), train, settings=replace(settings, epochs=4)).model
    for name, p in result.named_parameters():
        torch.testing.assert_close(p, torch.stack([end.get_parameter(name) for end in ends]).mean(0))
