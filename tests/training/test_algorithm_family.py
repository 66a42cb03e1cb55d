"""What every registered algorithm promises, under every optimizer."""

import copy
import inspect
from dataclasses import replace

import pytest
import torch

from genmeasure import registry
from genmeasure.errors import InputError
from genmeasure.training.algorithm import Algorithm, get_algorithm
from genmeasure.training.loop import fine_tune
from genmeasure.training.optimizers import OPTIMIZERS

NAMES = [member.name for member in registry.algorithm]
INSISTS = {"bsam": {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}}
"""Settings without which an algorithm refuses to run."""
TO_LEARN = {"bsam": ({}, {"learning_rate": 0.3}),
            "zeroth-order": ({"draws": 32, "sigma": 0.01}, {"learning_rate": 0.01, "epochs": 6})}
"""Parameters and settings with which so few steps are enough, where the common ones are not."""


def run(net, name, train, validation, settings, confusion, parameters=None, **more):
    settings = replace(settings, **INSISTS.get(name, {}))
    return fine_tune(net, get_algorithm(name, **(parameters or {})), train, validation, settings=settings,
                     confusion=confusion, **more)


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[k], other[k]) for k in one)


def test_family_has_its_members():
    assert {"plain", "early-stopping", "label-smoothing", "mixup", "l2-sp", "layer-ball", "noise-injection", "nso",
            "sam", "consistent-loss"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_declaration(name):
    member = registry.algorithm[name]
    assert member.source
    assert member.summary.endswith(".")
    assert member.function.__module__.endswith("." + name.replace("-", "_"))
    parameters = inspect.signature(member.function).parameters.values()
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters)
    assert isinstance(get_algorithm(name), Algorithm)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", NAMES)
def test_learning_rate_zero_leaves_weights(name, optimizer, net, few, settings, confusion):
    settings = replace(settings, learning_rate=0.0, optimizer=optimizer, epochs=1, weight_decay=0.01)
    result = run(net, name, few, few, settings, confusion)
    assert same(dict(net.named_parameters()), dict(result.model.named_parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_learns_and_leaves_everything_as_found(name, net, train, validation, settings, confusion):
    net.bn1.eval()
    before, modes = state(net), [m.training for m in net.modules()]
    torch.manual_seed(5)
    random = torch.get_rng_state()
    parameters, changes = TO_LEARN.get(name, ({}, {}))
    result = run(net, name, train, validation, replace(settings, **{"epochs": 4, **changes}), confusion, parameters)
    assert result.history[-1].training_loss < 0.8 * result.history[0].training_loss
    assert result.history[-1].validation_error < 0.5
    assert torch.equal(random, torch.get_rng_state())
    assert same(before, net.state_dict())
    assert [m.training for m in net.modules()] == modes == [m.training for m in result.model.modules()]
    assert all(p.grad is None for p in (*net.parameters(), *result.model.parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_seed_decides_the_weights(name, net, train, validation, settings, confusion):
    settings = replace(settings, epochs=1, batch_size=64)
    first = state(run(net, name, train, validation, settings, confusion).model)
    torch.manual_seed(99)
    again = state(run(copy.deepcopy(net), name, train, validation, settings, confusion).model)
    other = state(run(net, name, train, validation, replace(settings, seed=1), confusion).model)
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize("name", NAMES)
def test_resume_in_the_middle_of_an_epoch_gives_the_same_bits(name, net, train, validation, settings, confusion,
                                                              tmp_path):
    def stop(record):
        if record["step"] == 6 and "loss" in record:
            raise KeyboardInterrupt
    settings = replace(settings, batch_size=64, epochs=3)  # of three steps each
    whole = run(net, name, train, validation, settings, confusion)
    with pytest.raises(KeyboardInterrupt):
        run(net, name, train, validation, settings, confusion, folder=tmp_path, save_every=5, log_every=1,
            loggers=[stop])
    torch.manual_seed(99)
    resumed = run(net, name, train, validation, settings, confusion, folder=tmp_path)
    assert same(whole.model.state_dict(), resumed.model.state_dict())
    assert [replace(e, seconds=0.0) for e in whole.history] == [replace(e, seconds=0.0) for e in resumed.history]


@pytest.mark.parametrize("name", NAMES)
def test_statistics_count_every_step_once(name, net, train, validation, settings, confusion):
    result = run(net, name, train, validation, replace(settings, learning_rate=0.0), confusion)
    if result.algorithm.average is not None:  # counts all batches anew for the averaged weights
        assert result.model.bn1.num_batches_tracked == 6
        return
    assert result.model.bn1.num_batches_tracked == 2 * 6  # 193 examples: the leftover one joins the sixth minibatch
    plain = run(net, "plain", train, validation, replace(settings, learning_rate=0.0), confusion)
    if name == "nso":  # the mean over a pair, which is that at the weights where the layers before are linear
        torch.testing.assert_close(result.model.bn1.running_mean, plain.model.bn1.running_mean, rtol=0, atol=1e-6)
        torch.testing.assert_close(result.model.bn1.running_var, plain.model.bn1.running_var, rtol=0.05, atol=0.0)
    elif name not in ("mixup", "adversarial-training"):  # which see other inputs
        assert torch.equal(result.model.bn1.running_mean, plain.model.bn1.running_mean)
        assert torch.equal(result.model.bn1.running_var, plain.model.bn1.running_var)


@pytest.mark.parametrize(("name", "passes"), [
    ("plain", 1), ("sam", 2), ("asam", 2), ("usam", 2), ("random-sam", 2), ("cr-sam", 3), ("cr-sam-differences", 3),
    ("hero", 4), ("nso", 2), ("noise-injection", 1), ("zeroth-order", 2 / 3)])
def test_passes(name, passes, net, train, settings):
    assert fine_tune(net, name, train, settings=settings).passes == passes * settings.epochs


@pytest.mark.parametrize(("name", "given", "end"), [
    ("samm", {}, "did you mean 'sam'?"),
    ("sam", {"roh": 1.0}, "did you mean 'rho'?"),
    ("sam", {"rho": -1.0}, "the length of the perturbation must be at least 0"),
    ("nso", {"sigma": -0.1}, "a standard deviation must be at least 0"),
    ("noise-injection", {"draws": 0}, "at least 1 draw is needed for a gradient"),
    ("nso", {"lam": 1.0}, "or the gradients at moved weights would not count"),
    ("nso", {"distribution": "cauchy"}, "take one of normal, laplace, uniform, binomial, rademacher"),
    ("nso", {"distribution": "gaussian"}, "known are: binomial, laplace, normal, rademacher, uniform"),
    ("nso", {"statistics": "both"}, "known are: clean, moved"),
    ("nso", {"schedule": "linaer"}, "did you mean 'linear'?"),
    ("nso", {"schedule": "log-linear", "sigma": 0.0}, "sigma must be above 0 to have a logarithm"),
    ("noise-injection", {"momentum": 1.0}, "it must be at least 0 and below 1"),
    ("asam", {"eta": -1.0}, "what is added to the size of a weight must be at least 0"),
    ("usam", {"rho": -1.0}, "the step uphill must be at least 0"),
    ("random-sam", {"sigma": -1.0}, "a standard deviation must be at least 0"),
    ("cr-sam", {"alpha": -1.0}, "the weights of both logarithms must be at least 0"),
    ("cr-sam-differences", {"gamma": -1.0}, "the weights of both differences must be at least 0"),
    ("hero", {"lam": -1.0}, "the weight of the penalty must be at least 0"),
    ("zeroth-order", {"sigma": 0.0}, "the distance over which losses are compared must be above 0"),
    ("zeroth-order", {"draws": 0}, "at least 1 draw is needed for a gradient"),
    ("bsam", {"rho": -1.0}, "the step uphill must be at least 0"),
    ("bsam", {"beta2": 1.0}, "both must be at least 0 and below 1"),
    ("bsam", {"delta": 0.0, "damping": 0.0}, "scale must be above 0"),
    ("bsam", {"examples": 0}, "the posterior needs at least 1 example"),
    ("label-smoothing", {"smoothing": 2.0}, "it must lie between 0 and 1"),
    ("mixup", {"alpha": 0.0}, "the parameter of the Beta distribution must be above 0"),
    ("l2-sp", {"weight": -1.0}, "both must be at least 0"),
    ("layer-ball", {"radius": -1.0}, "it must be at least 0"),
    ("layer-ball", {"growth": 0.0}, "the factor between layers must be above 0"),
    ("layer-ball", {"radius": {"conv1": 1.0}, "growth": 2.0}, "growth and groups go with a single number only"),
    ("layer-ball", {"head_about": "nought"}, "known are: start, zero"),
    ("early-stopping", {"by": "eror"}, "did you mean 'error'?"),
    ("early-stopping", {"patience": 0}, "it must be at least 1 epoch"),
])
def test_bad_parameters(name, given, end):
    with pytest.raises(InputError) as caught:
        get_algorithm(name, **given)
    assert str(caught.value).endswith(end)
