"""Loading tensors by name."""

import functools
import re

import pytest
import torch
from torch import nn

from genmeasure.checkpoints.match import fingerprint, match
from genmeasure.checkpoints.read import read
from genmeasure.checkpoints.write import write
from genmeasure.errors import InputError


class Net(nn.Module):
    def __init__(self, classes=3, tied=False):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.fc = nn.Linear(4, classes)
        if tied:
            self.other = nn.Linear(4, classes, bias=False)
            self.other.weight = self.fc.weight


def net(seed, **arguments):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Net(**arguments)


def state(model):
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def refused(model, tensors, end, **arguments):
    """`match` raises, its sentence ends like this, and the model stays as it was."""
    before = fingerprint(state(model))
    with pytest.raises(InputError) as error:
        match(model, tensors, **arguments)
    assert fingerprint(state(model)) == before
    assert str(error.value).endswith(end)
    return str(error.value)


def test_loads_by_name_whatever_the_order():
    model, tensors = net(0), state(net(1))
    backwards = dict(reversed(tensors.items()))
    result = match(model, backwards)
    assert fingerprint(state(model)) == fingerprint(tensors)
    assert result == []


def test_leaves_mode_gradients_and_dtype():
    model = net(0).double().eval()
    model.fc.weight.requires_grad_(False)
    match(model, state(net(1)))
    assert not model.training
    assert not model.fc.weight.requires_grad
    assert model.fc.weight.dtype is torch.float64
    assert model.fc.weight.grad is None


@pytest.mark.parametrize("wrap", [nn.DataParallel, functools.partial(torch.compile, backend="eager")])
def test_wrapped_model_and_wrapped_tensors(wrap):
    plain, wrapped = net(1), wrap(net(2))
    match(wrapped, state(plain))
    assert torch.equal(wrapped.state_dict()[next(iter(wrapped.state_dict()))], plain.body[0].weight)
    back = net(3)
    match(back, state(wrapped))
    assert fingerprint(state(back)) == fingerprint(state(plain))


def test_head_by_its_wrapped_name():
    model = nn.DataParallel(net(0, classes=5))
    for head in ("fc", "module.fc"):
        assert match(model, state(net(1)), head=head) == ["module.fc.bias", "module.fc.weight"]


def test_counter_of_old_checkpoints_may_be_absent():
    model, tensors = net(0), state(net(1))
    del tensors["body.1.num_batches_tracked"]
    match(model, tensors)
    assert torch.equal(model.fc.weight, tensors["fc.weight"])


def test_tied_weights_stored_once():
    tensors, model = state(net(1, tied=True)), net(0, tied=True)
    del tensors["fc.weight"]
    assert match(model, tensors) == []
    assert torch.equal(model.fc.weight, tensors["other.weight"])
    assert model.fc.weight is model.other.weight


def test_tied_weights_that_differ():
    tensors = state(net(1, tied=True))
    tensors["other.weight"] += 1
    refused(net(0, tied=True), tensors, "or read a checkpoint of the tied model")


def test_missing_unexpected_and_misshaped_are_listed():
    tensors = state(net(1, classes=5))
    for name in ("body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"):
        del tensors[name]
    tensors["extra.thing"] = torch.ones(1)
    message = refused(net(0), tensors, "build the same architecture, with the same sizes, that the checkpoint was "
                                       "saved from")
    assert "4 missing (body.0.bias, body.0.weight, body.1.bias, …)" in message
    assert "1 unexpected (extra.thing)" in message
    assert "2 of another shape (fc.bias: [5] came, the model has [3]; fc.weight: [5, 4] came, " in message


def test_only_the_head_differs():
    refused(net(0), state(net(1, classes=5)),
            "build the model with the same sizes, or name 'fc' as the head where only the head differs")


def test_misspelt_name():
    tensors = state(net(1))
    tensors["fc.wieght"] = tensors.pop("fc.weight")
    refused(net(0), tensors, "fc.wieght should perhaps be called fc.weight: rename it")


def test_prefix_too_much_and_too_little():
    tensors = state(net(1))
    some = {k if k.startswith("fc") else f"backbone.{k}": v for k, v in tensors.items()}
    refused(net(0), some, "its names carry the prefix 'backbone.' and the model's do not: rename them without it")
    inner = {k.removeprefix("body."): v for k, v in tensors.items()}
    refused(net(0), inner, "the model's names carry the prefix 'body.' and its own do not: rename them with it")


@pytest.mark.parametrize("change", ["other classes", "absent", "another structure", "half of it fits"])
def test_head_is_left_out_as_a_whole(change):
    model, tensors = net(0), state(net(1, classes=5 if change == "other classes" else 3))
    if change == "half of it fits":
        tensors["fc.weight"] = torch.zeros(3, 9)
    if change in ("absent", "another structure"):
        del tensors["fc.weight"], tensors["fc.bias"]
    if change == "another structure":
        tensors["fc.0.weight"] = torch.ones(2, 2)
    before = model.fc.weight.clone(), model.fc.bias.clone()
    assert match(model, tensors, head="fc") == ["fc.bias", "fc.weight"]
    assert torch.equal(model.fc.weight, before[0])
    assert torch.equal(model.fc.bias, before[1])
    assert torch.equal(model.body[0].weight, tensors["body.0.weight"])


def test_head_that_fits_is_loaded():
    model, tensors = net(0), state(net(1))
    assert match(model, tensors, head="fc") == []
    assert torch.equal(model.fc.weight, tensors["fc.weight"])


def test_head_excuses_nothing_else():
    tensors = state(net(1, classes=5))
    del tensors["body.0.bias"]
    message = refused(net(0), tensors, "that the checkpoint was saved from", head="fc")
    assert "1 missing (body.0.bias);" in message
    refused(net(0), tensors, "did you mean 'fc'?", head="fcc")
    refused(nn.Linear(2, 3), state(nn.Linear(2, 4)), "that the checkpoint was saved from", head="")


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_quantised_weights(dtype):
    tensors = state(net(1))
    tensors["fc.weight"] = tensors["fc.weight"].to(dtype)
    message = refused(net(0), tensors, "give a checkpoint that is not quantised, in float32, float16 or bfloat16")
    assert f"1 weights of the checkpoint are of type {dtype} (fc.weight)" in message


def test_several_heads_are_left_out_each_as_a_whole():
    model, tensors = net(0), state(net(1, classes=5))
    del tensors["body.0.bias"]
    before = model.body[0].weight.clone()
    assert match(model, tensors, head=["fc", "body.0"]) == ["body.0.bias", "body.0.weight", "fc.bias", "fc.weight"]
    assert torch.equal(model.body[0].weight, before)
    assert torch.equal(model.body[1].weight, tensors["body.1.weight"])


def test_fingerprint_sees_names_values_shapes_and_dtypes_but_not_order():
    a = {"x": torch.arange(4.0), "y": torch.ones(2, dtype=torch.bfloat16)}
    assert fingerprint(a) == fingerprint(dict(reversed(a.items())))
    assert fingerprint(a) == fingerprint({k: v.repeat_interleave(2)[::2] for k, v in a.items()})
    assert re.fullmatch("[0-9a-f]{64}", fingerprint(a))
    others = [{"z": a["x"], "y": a["y"]}, a | {"x": a["x"].reshape(2, 2)}, a | {"y": a["y"].half()},
              a | {"x": a["x"] + 1e-7}, {"x": a["x"]}, a | {"s": torch.tensor(1)}]
    assert len({fingerprint(t) for t in [a, *others]}) == 7


def test_from_file_to_model(tmp_path):
    source, model = net(1), net(0)
    match(model, read(write(tmp_path / "a.safetensors", source.state_dict())).tensors)
    assert fingerprint(state(model)) == fingerprint(state(source))
