"""Models that may be neither moved nor cast: quantised, with weights held elsewhere, spread by `device_map`."""

import json

import pytest
import torch
from torch import nn

import genmeasure as gm
from genmeasure.data.batches import Batches
from genmeasure.errors import InputError

SETTING = {"rtol": 0.5, "layer_rtol": 10.0}


class Integers(nn.Module):
    """A linear map whose weight is a buffer of eight-bit integers."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.register_buffer("weight", torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8))

    def forward(self, x):
        return x @ (self.weight.to(x.dtype) / 127).T


def network(inner):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), inner(8, 8), nn.Tanh(), nn.Linear(8, 3)).eval()


def data():
    generator = torch.Generator().manual_seed(0)
    return Batches.from_arrays(torch.randn(24, 4, generator=generator),
                               torch.randint(0, 3, (24,), generator=generator), batch_size=8)


def measured(s):
    trace = gm.measure(s, "hessian-trace", route="forward", **SETTING)
    curve = gm.measure(s, "noise-stability", sigmas=(0.01, 0.05), rtol=0.5)
    assert (trace["stderr"] > 0).all()
    assert curve["value"].notna().all()
    return trace.set_index("layer"), curve


def test_integer_weights_are_left_out_and_named():
    net = network(Integers)
    s = gm.subject(net, net, data(), device="cpu")
    assert [x.name for x in s.layers] == ["0", "4"]
    assert s.notes["end"][-1].endswith("not measured: 2.weight")
    # memory is shared, and the caller's weights are as they were
    assert s.model[0].weight.data_ptr() == net[0].weight.data_ptr()
    assert net[0].weight.requires_grad
    found, _ = measured(s)
    exact = gm.measure(s, "hessian-trace", rtol=0.01).set_index("layer")
    for name in ("0", "4", "total"):
        assert abs(found.loc[name, "value"] - exact.loc[name, "value"]) < 4 * found.loc[name, "stderr"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_dynamically_quantised_model():
    net = network(nn.Linear)
    quantised = torch.ao.quantization.quantize_dynamic(net, {"2": torch.ao.quantization.default_dynamic_qconfig})
    before = quantised[2].weight().int_repr().clone()
    s = gm.subject(quantised, quantised, data(), device="cpu")
    assert [x.name for x in s.layers] == ["0", "4"]
    assert s.notes["end"][-1].endswith("not measured: 2.weight")
    assert len(s.fingerprint) == 64
    found, _ = measured(s)
    assert json.loads(gm.measure(s, "hessian-trace", route="forward", **SETTING)["params"].iloc[0]
                      )["found"]["piecewise-linear"] is False
    whole = gm.measure(gm.subject(net, net, data(), device="cpu"), "hessian-trace", rtol=0.01).set_index("layer")
    assert found.loc["4", "value"] == pytest.approx(whole.loc["4", "value"], rel=0.5)
    assert torch.equal(quantised[2].weight().int_repr(), before)


def test_the_fingerprint_knows_weights_that_cannot_be_read():
    net = network(Integers)
    first = gm.subject(net, net, data(), device="cpu").fingerprint
    assert gm.subject(net, net, data(), device="cpu").fingerprint == first
    net[2].weight[0, 0] += 1
    assert gm.subject(net, net, data(), device="cpu").fingerprint != first


class Elsewhere(nn.Linear):
    """Its weight is on no device between calls."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.far = (self.weight.detach().clone(),)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, device="meta"))

    def forward(self, x):
        return nn.functional.linear(x, self.far[0], self.bias)


def test_weights_held_elsewhere_are_left_out_and_named():
    net = network(Elsewhere)
    s = gm.subject(net, net, data(), device="cpu")
    assert [x.name for x in s.layers] == ["0", "4"]
    assert s.notes["end"][-1].endswith("not measured: 2.weight")
    assert len(s.fingerprint) == 64
    measured(s)


@pytest.mark.parametrize("spread", ["mark", "accelerate"])
def test_a_causal_language_model_by_device_map(spread, torchvision):
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.GPT2Config(vocab_size=13, n_positions=8, n_embd=8, n_layer=1, n_head=2,
                                         resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        net = transformers.GPT2LMHeadModel(config).to(torch.bfloat16)
        net.lm_head.weight = nn.Parameter(net.lm_head.weight.detach().float().to(torch.bfloat16))
        net.transformer.ln_f.float()
        net.transformer.ln_f.register_forward_hook(lambda m, i, o: o.to(torch.bfloat16))
        tokens = torch.randint(0, 13, (12, 6))
    if spread == "mark":
        net.hf_device_map = {"": "cpu"}
    else:
        pytest.importorskip("accelerate").dispatch_model(net, {"": "cpu"}, force_hooks=True)
    batches = Batches([{"input_ids": tokens[i:i + 4], "labels": tokens[i:i + 4]} for i in (0, 4, 8)])
    s = gm.subject(net, net, batches, loss="next-token-cross-entropy", device="cpu")
    assert {str(w.dtype) for w in s.state.values()} == {"torch.bfloat16", "torch.float32"}
    assert len(s.layers) == 5
    before = {k: v.clone() for k, v in net.state_dict().items()}
    measured(s)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_what_cannot_be_done_is_refused():
    net = network(Integers)
    with pytest.raises(InputError, match="or give a model of floating-point weights on one device$"):
        gm.subject(net, net, data(), device="cpu", dtype="float64")
    with pytest.raises(InputError, match="as a module or a state dict$"):
        gm.subject(net, {"4.weight": net[4].weight}, data(), device="cpu")
