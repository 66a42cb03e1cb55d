"""What is audited: starts of every kind, bad input, fingerprints, and what is left alone."""

from __future__ import annotations

import copy
import types

import numpy as np
import pytest
import small
import torch
from torch import nn

import genmeasure as gm
from genmeasure.checkpoints.match import fingerprint
from genmeasure.checkpoints.write import write
from genmeasure.errors import InputError
from genmeasure.losses import Loss, zero_one
from genmeasure.subject import Subject, SubjectFiles


@pytest.fixture(scope="module")
def nets():
    return small.pair("residual")


def subject(model, start, train=None, test=None, **more) -> Subject:
    return gm.subject(model, start, small.batches() if train is None else train, test, **{"device": "cpu", **more})


def changed(model: nn.Module, name: str, value) -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = value
    return model


def test_subject_stays_a_function():
    import importlib
    module = importlib.import_module("genmeasure.subject")
    import genmeasure.subject  # noqa: F401
    assert isinstance(module, types.ModuleType)
    assert isinstance(gm.subject, types.FunctionType)
    assert gm.subject is module.subject


def test_a_start_is_a_module_a_state_dict_or_a_path(nets, tmp_path):
    start, end = nets
    state = start.state_dict()
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "start.pth")
    starts = [start, state, write(tmp_path / "start.safetensors", state), str(tmp_path / "start.pth")]
    found = [subject(end, s) for s in starts]
    for one in found:
        assert fingerprint(dict(one.start)) == fingerprint(state)
        assert one.fingerprint == found[0].fingerprint
        assert one.head_center == "start"
        assert [x.name for x in one.layers] == ["stem", "block", "head"]
    layer = found[0].layers[1]
    moved = found[0].displacement(layer)
    torch.testing.assert_close(moved, end.block.weight.detach() - start.block.weight.detach(), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # inside torch
def test_of_a_compiled_model_what_was_compiled_is_measured(nets):
    start, end = nets
    found, expected = (gm.measure(gm.subject(*given, small.batches(), device="cpu"), "distance")
                       for given in ((torch.compile(end), torch.compile(start)), (end, start)))
    assert found["layer"].tolist() == expected["layer"].tolist()
    assert found["value"].tolist() == expected["value"].tolist()


def test_a_head_of_another_size_is_measured_from_zero(nets):
    _, end = nets
    start, _ = small.pair("residual")
    start.head = nn.Linear(4, 7)
    found = subject(end, start)
    assert found.head_center == "zero"
    assert "head.weight" not in found.start
    assert "head.bias" not in found.start
    head = found.layers[-1]
    torch.testing.assert_close(found.displacement(head), end.head.weight.detach())
    rows = gm.measure(found, "distance").set_index(["layer", "term"])["value"]
    assert rows["head", "frobenius"] == rows["head", "frobenius-about-zero"] > 0
    assert ("head", "relative") not in rows.index


def test_a_given_head_is_the_one_that_may_differ(nets):
    start, end = nets
    assert next(x.name for x in subject(end, start, head="block").layers if x.head) == "block"
    other = {k: v for k, v in start.state_dict().items() if not k.startswith("block.")}
    assert subject(end, other, head="block").head_center == "zero"
    with pytest.raises(InputError, match="did you mean 'head'\\?$"):
        subject(end, start, head="haed")


def test_folding_takes_each_sides_own_statistics(nets):
    start, end = nets
    start, end = copy.deepcopy(start), copy.deepcopy(end)
    end.stem_norm.running_var.fill_(4.0)
    start.stem_norm.running_var.fill_(1.0)
    found = subject(end, start, dtype="float64")
    layer = found.layers[0]
    for weights, net in ((found.weight(layer, fold=True), end), (found.start_weight(layer, fold=True), start)):
        norm = net.stem_norm
        scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
        torch.testing.assert_close(weights, net.stem.weight.detach().double() * scale[:, None, None, None])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(nets, value):
    start, end = nets
    with pytest.raises(InputError, match="hold 1 NaN or infinite numbers in 'block.weight'; a finite checkpoint is "
                                         "needed$"):
        subject(changed(end, "block.weight", value), start)
    with pytest.raises(InputError, match="hold 1 NaN or infinite numbers in 'block.weight'; a finite checkpoint is "
                                         "needed$"):
        subject(end, changed(start, "block.weight", value))
    with pytest.raises(InputError, match="a finite checkpoint is needed$"):
        subject(end, changed(start, "block.weight", value).state_dict())


def test_labels_must_be_classes_of_the_model(nets):
    start, end = nets
    x, y = small.images()
    with pytest.raises(InputError, match=r"the labels of 'train' lie in 0\.\.3 but the model has 3 outputs; labels "
                                         r"must be 0\.\.2$"):
        subject(end, start, [(x, torch.arange(len(x)) % 4)])
    with pytest.raises(InputError, match=r"the labels of 'test' lie in -1\.\.2 .* labels must be 0\.\.2$"):
        subject(end, start, [(x, y)], [(x, y - (y == 0).long())])
    with pytest.raises(InputError, match="cross-entropy needs whole-number class labels$"):
        subject(end, start, [(x, y.float())])


def test_inputs_that_do_not_fit_the_model_are_bad_input(nets):
    start, end = nets
    x, y = small.images()
    with pytest.raises(InputError, match="give inputs of the shape and type that it was trained on$"):
        subject(end, start, [(x.repeat(1, 3, 1, 1), y)])
    with pytest.raises(InputError, match="give inputs of the shape and type that it was trained on$"):
        subject(end, start, [{"pixels": x, "labels": y}])


@pytest.mark.parametrize(("given", "end_of_sentence"), [
    ({"train": []}, "at least one example is needed$"),
    ({"loss": "cross-entropi"}, "did you mean 'cross-entropy'\\?$"),
    ({"dtype": "float16"}, "choose one of float32, float64, tf32, bfloat16$"),
    ({"device": "cuda:77"}, "choose one of auto, cpu, cuda, cuda:1, mps$"),
    ({"device": "nonsense"}, "choose one of auto, cpu, cuda, cuda:1, mps$"),
    ({"start": "nowhere.safetensors"}, "give the path of an existing file$"),
])
def test_bad_input_says_what_to_do(nets, given, end_of_sentence):
    start, end = nets
    with pytest.raises(InputError, match=end_of_sentence):
        subject(end, **{"start": start, **given})


def test_a_start_that_does_not_match_is_refused(nets):
    start, end = nets
    state = start.state_dict()
    with pytest.raises(InputError, match="stem.wieght should perhaps be called stem.weight: rename it$"):
        subject(end, {("stem.wieght" if k == "stem.weight" else k): v for k, v in state.items()})
    with pytest.raises(InputError, match="that the checkpoint was saved from$"):
        subject(end, small.pair("smooth")[0])


def test_the_fingerprint_changes_with_all_that_a_result_depends_on(nets):
    start, end = nets
    x, y = small.images()
    test = small.batches(seed=1)
    relabelled = y.clone()
    relabelled[0] = (y[0] + 1) % 3
    gelu = copy.deepcopy(end)
    gelu.extra = nn.GELU()
    own = subject(end, start, test=test).fingerprint
    assert own == subject(copy.deepcopy(end), start, test=small.batches(seed=1)).fingerprint
    others = [
        subject(changed(end, "block.weight", 0.5), start, test=test), subject(end, changed(start, "stem.weight", 0.5),
                                                                              test=test),
        subject(end, start, [(x, relabelled)], test), subject(end, start, [(x + 1e-6, y)], test),
        subject(end, start, small.batches(batch_size=8), test), subject(end, start), subject(end, start, test=[(x, y)]),
        subject(end, start, test=test, loss="clamped-cross-entropy"), subject(end, start, test=test, dtype="float64"),
        subject(end, start, test=test, head="block"), subject(gelu, start, test=test)]
    prints = [s.fingerprint for s in others]
    assert own not in prints
    assert len(set(prints)) == len(prints)


def test_the_subject_owns_its_weights(nets):
    start, end = small.pair("residual")
    state = start.state_dict()
    found = subject(end, state)
    before = found.fingerprint, gm.measure(found, "distance")["value"].tolist()
    with torch.no_grad():
        for parameter in (*end.parameters(), *state.values()):
            parameter.zero_()
    assert fingerprint(found.state) != fingerprint(end.state_dict())
    again = Subject(found.name, found.model, found.start, found.loss, found.train)
    assert (again.fingerprint, gm.measure(again, "distance")["value"].tolist()) == before


def test_a_loss_and_data_of_ones_own(nets):
    start, end = nets
    x, y = small.images()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16)
    state = torch.get_rng_state()
    found = subject(end, start, loader, loss=Loss("zero-one", zero_one, upper=1.0))
    assert torch.equal(torch.get_rng_state(), state)
    assert found.train.size == len(x)
    assert found.classes == small.CLASSES
    assert found.risk.value() == gm.measure(subject(end, start, loader, loader), "gap").set_index("term")["value"][
        "error-train"]


def test_inputs_that_are_not_finite_leave_no_number(nets):
    start, end = nets
    x, y = small.images()
    for bad in (float("nan"), float("inf")):
        x[5, 0, 0, 0] = bad
        with pytest.raises(InputError, match="holds NaN or infinite numbers; repair or drop these examples$"):
            subject(end, start, [(x, y)])
    x[5] = 3e38  # overflows in the network
    found = subject(end, start, [(x, y)])
    for name in ("margin", "noise-stability", "neyshabur2018"):
        with pytest.raises(InputError, match="check the inputs, or measure with --dtype float64$"):
            gm.measure(found, name)


def files(tmp_path, **more) -> SubjectFiles:
    start, end = small.pair("residual")
    (x, y), (tx, ty) = small.images(), small.images(seed=1)
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=tx, y_test=ty)
    write(tmp_path / "start.safetensors", start.state_dict())
    write(tmp_path / "end.safetensors", end.state_dict())
    data = tmp_path / "data.npz"
    return SubjectFiles(**{"name": "one", "model": f"{small.FILE}:residual", "device": "cpu", "batch_size": 16,
                           "start": str(tmp_path / "start.safetensors"), "end": str(tmp_path / "end.safetensors"),
                           "train": f"{data}#train", "test": f"{data}#test",
                           "labels": (("method", "plain"), ("noise", 0.2)), **more})


def test_files_load_to_the_same_subject(tmp_path):
    start, end = small.pair("residual")
    found = files(tmp_path).load()
    assert found.fingerprint == subject(end, start, small.batches(), small.batches(seed=1)).fingerprint
    assert (found.name, found.labels) == ("one", {"method": "plain", "noise": 0.2})
    assert found.test.name.endswith("#test")
    assert gm.measure(found, "gap").loc[0, "noise"] == 0.2
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert files(tmp_path, test=None).load().test is None
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("given", "end_of_sentence"), [
    ({"model": f"{small.FILE}:residuall"}, "did you mean 'residual'\\?$"),
    ({"model": f"{small.FILE}:smooth"}, "that the checkpoint was saved from$"),
    ({"end": "nowhere.pth"}, "give the path of an existing file$"),
    ({"train": "digits-5-10"}, "did you mean 'digits-5-9'\\?$"),
    ({"batch_size": 0}, "give at least 1$"),
])
def test_bad_files_say_what_to_do(tmp_path, given, end_of_sentence):
    with pytest.raises(InputError, match=end_of_sentence):
        files(tmp_path, **given).load()


class Around(nn.Module):
    """`around(network, x)`, for models that do something wrong with a network."""

    def __init__(self, network, around):
        super().__init__()
        self.network, self.around = network, around

    def forward(self, x):
        return self.around(self.network, x)


def refused(around, start, end_of_sentence, train=None, **more):
    state = torch.get_rng_state()
    with pytest.raises(InputError, match=end_of_sentence):
        subject(Around(copy.deepcopy(start), around), Around(start, around), train, **more)
    assert torch.equal(torch.get_rng_state(), state)
    assert start.training


def test_a_model_that_draws_at_random_is_refused(nets):
    refused(lambda f, x: torch.dropout(f(x), 0.5, True), nets[0],
            r"two calls .* differ by up to [\d.e-]+ .* such as F.dropout without training=self.training$")


def test_examples_that_depend_on_each_other_are_refused(nets):
    refused(lambda f, x: f(x) - f(x).mean(0), nets[0], "normalise over one example at a time$")
    start = copy.deepcopy(nets[0])
    start.stem_norm = nn.BatchNorm2d(4, track_running_stats=False)
    with pytest.raises(InputError, match="because of stem_norm without running statistics; .* one example at a time$"):
        subject(start, start)


def test_parameters_that_are_not_the_models_own_are_refused(nets):
    x, y = small.images()
    temperature = torch.ones((), requires_grad=True)
    with pytest.raises(InputError, match="^the loss warm depends on 1 tensors .* or detach them$"):
        subject(nets[1], nets[0], loss=Loss("warm", lambda f, y: nn.functional.cross_entropy(
            f * temperature, y, reduction="none")))
    hidden = [nn.Linear(3, 3), nn.Linear(3, 3)]
    refused(lambda f, x: hidden[1](hidden[0](f(x))), nets[0],
            r"^the outputs of the model depend on 4 tensors .*register them with the model, as nn.Parameter or in an "
            r"nn.ModuleList, or detach them$")
    assert temperature.grad is None
    assert subject(nets[1], nets[0], [(x, y)]).train.size == len(x)


@pytest.mark.parametrize("around", [lambda f, x: f(x).detach(), lambda f, x: torch.no_grad()(f)(x)])
def test_a_model_without_derivatives_is_refused(nets, around):
    refused(around, nets[0], "remove torch.no_grad, detach or .data from its forward pass$")


def test_a_layer_that_the_loss_does_not_use_counts_zero(nets):
    def around(f, x):
        return f(x) + 0 * f.side(x.flatten(1)).detach()
    start = copy.deepcopy(nets[0])
    start.side = nn.Linear(36, 3)
    found = subject(Around(start, around), Around(start, around))
    assert "network.side" in [x.name for x in found.layers]
    assert not found.risk.gradient()["network.side"].any()


class Tokens(nn.Module):
    """[batch, tokens] -> [batch, tokens, 5]."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.embed(x))


def test_losses_and_outputs_must_fit_each_other(nets):
    x, y = small.images()
    tokens = torch.arange(12).reshape(3, 4) % 5
    for loss, model, train, end_of_sentence in [
            ("cross-entropy", Tokens(), [(tokens, tokens)], r"the shape \[3, 4, 5\] .* take token-cross-entropy where "
             "every token has a label, or next-token-cross-entropy for a causal language model$"),
            ("cross-entropy", nets[0], [(x, torch.ones(len(x), 3))], "take binary-cross-entropy for several labels per "
             "example, or squared for a regression$"),
            ("token-cross-entropy", nets[0], [(x, y)], "take cross-entropy where an example has one label, else give "
             "one label per token$"),
            ("token-cross-entropy", Tokens(), [(tokens, tokens + 1)], r"labels must be 0\.\.4, or -100 where there is "
             "none$"),
            ("token-cross-entropy", Tokens(), [(tokens, tokens * 0 - 100)], "at least one token a label other than "
             "-100$"),
            ("binary-cross-entropy", nets[0], [(x, torch.full((len(x), 3), 2))], r"needs labels in 0\.\.1$"),
            ("binary-cross-entropy", nets[0], [(x, torch.ones(len(x), 2))], "a loss for such outputs and labels$"),
            (Loss("mean", lambda f, y: f.mean()), nets[0], [(x, y)], "so take no mean over the batch$")]:
        with pytest.raises(InputError, match=end_of_sentence):
            subject(model, model, train, loss=loss)


def test_the_mean_loss_is_per_token_whatever_the_lengths():
    model = Tokens().double()
    generator = torch.Generator().manual_seed(0)
    train = [(torch.randint(5, (2, t), generator=generator), torch.randint(5, (2, t), generator=generator))
             for t in (3, 6)]
    train[1][1][0, 2:] = -100
    train[0][1][1] = -100  # an example without any label
    found = subject(model, model, train, train, loss="token-cross-entropy", dtype="float64")
    each = torch.cat([nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="none")[
        y.flatten() != -100] for x, y in train])
    assert found.risk.value() == pytest.approx(each.mean().item(), rel=1e-12)
    rows = gm.measure(found, "gap").set_index("term")
    wrong = torch.cat([(model(x).argmax(-1) != y)[y != -100] for x, y in train])
    assert rows.loc["loss-test", "value"] == pytest.approx(each.mean().item(), rel=1e-12)
    assert rows.loc["error-train", "value"] == pytest.approx(wrong.double().mean().item(), rel=1e-12)
    sums, counts = (torch.cat([torch.where(y != -100, t, 0.0).sum(1) for t, (x, y) in zip(ts, train, strict=True)])
                    for ts in ([nn.functional.cross_entropy(model(x).mT, y, reduction="none") for x, y in train],
                               [torch.ones(y.shape).double() for x, y in train]))
    ratio = sums.sum() / counts.sum()  # the standard error of a ratio of two means
    expected = (sums - ratio * counts).std() / len(sums) ** 0.5 / counts.mean()
    assert rows.loc["loss-test", "stderr"] == pytest.approx(expected.item(), rel=1e-9)
    (gradient,) = torch.autograd.grad(each.mean(), model.head.weight)
    torch.testing.assert_close(found.risk.gradient()["head"], gradient)


def test_several_labels_per_example(nets):
    x, _ = small.images()
    labels = (torch.rand(len(x), 3, generator=torch.Generator().manual_seed(0)) > 0.5).long()
    found = subject(nets[1], nets[0], [(x, labels)], [(x, labels)], loss="binary-cross-entropy")
    rows = gm.measure(found, "gap").set_index("term")["value"]
    outputs = found.model(x)
    assert rows["error-train"] == pytest.approx(((outputs > 0) != labels).double().mean().item())
    truth = nn.functional.binary_cross_entropy_with_logits(outputs, labels.float(), reduction="sum") / len(x)
    assert rows["loss-train"] == pytest.approx(truth.item(), rel=1e-5)


def test_a_number_that_is_not_finite_names_its_example_and_batch(nets):
    risk = subject(nets[1], nets[0]).risk
    batch = list(risk.batches)[1]
    values = torch.ones(len(batch), 2)
    assert risk.checked(values, batch, "loss") is values
    values[3, 1] = float("nan")
    with pytest.raises(InputError, match=r"^the loss is NaN or infinite on example 19 of 'seed 0' \(batch 1\); .*"
                                         "or measure with --dtype float64$"):
        risk.checked(values, batch, "loss")
