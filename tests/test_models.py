"""The same call on a ResNet, a ViT, a BERT classifier and two causal language models, built without downloads."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import genmeasure as gm
from genmeasure import study
from genmeasure.data.batches import Batches
from genmeasure.subject import Subject

VOCABULARY, CLASSES, EXAMPLES, TOKENS = 16, 3, 5, 6


def resnet18(torchvision) -> nn.Module:
    return torchvision.models.resnet18(num_classes=CLASSES)


def timm_vit(torchvision) -> nn.Module:
    import timm
    return timm.models.VisionTransformer(img_size=16, patch_size=8, embed_dim=12, depth=1, num_heads=2, mlp_ratio=2,
                                         num_classes=CLASSES)


def bert(torchvision) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification
    return BertForSequenceClassification(BertConfig(
        vocab_size=VOCABULARY, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=TOKENS, num_labels=CLASSES))


def gpt2(torchvision) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=TOKENS, n_embd=12, n_layer=1, n_head=2,
                                      bos_token_id=0, eos_token_id=0))


def llama(torchvision) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=12, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=TOKENS, bos_token_id=0, eos_token_id=0))


def images(size: int) -> list:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(EXAMPLES, 3, size, size, generator=generator), torch.arange(EXAMPLES) % CLASSES
    return [(x[:3], y[:3]), (x[3:], y[3:])]


def sentences(causal: bool) -> list:
    """Two batches of `BatchEncoding`, padded, the second one to another length."""
    from transformers import BatchEncoding
    generator = torch.Generator().manual_seed(1)
    batches = []
    for examples, tokens in ((3, TOKENS), (EXAMPLES - 3, TOKENS - 2)):
        ids = torch.randint(1, VOCABULARY, (examples, tokens), generator=generator)
        mask = torch.arange(tokens) < torch.randint(3, tokens + 1, (examples, 1), generator=generator)
        labels = torch.where(mask, ids, -100) if causal else torch.arange(examples) % CLASSES
        batches.append(BatchEncoding({"input_ids": ids * mask, "attention_mask": mask.long(), "labels": labels}))
    return batches


@dataclass(frozen=True)
class Case:
    build: Callable[..., nn.Module]
    data: Callable[[], list]
    loss: str = "cross-entropy"
    head: str = "head"
    layers: int = 0


CASES = {
    "resnet18": Case(resnet18, lambda: images(8), head="fc", layers=21),
    "timm-vit": Case(timm_vit, lambda: images(16), layers=6),
    "bert": Case(bert, lambda: sentences(False), head="classifier", layers=8),
    "gpt2": Case(gpt2, lambda: sentences(True), "next-token-cross-entropy", "lm_head", 5),
    "llama": Case(llama, lambda: sentences(True), "next-token-cross-entropy", "lm_head", 8),
}
each_model = pytest.mark.parametrize("name", CASES)
WORK = {"hessian-trace": {"rtol": 0.2, "layer_rtol": 1.0, "max_passes": 4}, "hessian-distance": {"steps": 2},
        "hessian-top": {"max_products": 3}, "distance": {},
        "noise-stability": {"sigmas": (0.01,), "max_passes": 3}}
LITTLE = {"max_passes": 2, "trace_max_passes": 2, "sigmas": (0.01,), "steps": 3, "max_products": 3}


@pytest.fixture(scope="module")
def subject(torchvision) -> Callable[..., Subject]:
    made: dict[tuple, Subject] = {}

    def make(name: str, dtype: str = "float32") -> Subject:
        if (name, dtype) not in made:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                start = CASES[name].build(torchvision)
                end = copy.deepcopy(start)
                with torch.no_grad():
                    for parameter in end.parameters():
                        parameter += 0.05 * torch.randn(parameter.shape)
            made[name, dtype] = gm.subject(end, start, CASES[name].data(), loss=CASES[name].loss, device="cpu",
                                           dtype=dtype)
        return made[name, dtype]
    return make


@each_model
def test_layers_and_head(subject, name):
    found = subject(name)
    assert [x.name for x in found.layers if x.head] == [CASES[name].head]
    assert len(found.layers) == CASES[name].layers
    assert found.head_center == "start"


@each_model
@pytest.mark.parametrize("measure", WORK)
def test_the_same_call_gives_finite_estimates(subject, name, measure):
    rows = gm.measure(subject(name), measure, **WORK[measure])
    assert len(rows)
    assert rows["value"].map(math.isfinite).all()
    assert "total" in set(rows["layer"])


@each_model
def test_the_trace_of_the_head_is_that_of_its_hessian(subject, name):
    """One Hessian product per weight of a layer, of the mean of the losses written out by hand."""
    # of the large one in float32, where p (1 - p) loses digits
    rounding, dtype = (5e-3, "float32") if name == "resnet18" else (1e-8, "float64")
    found = subject(name, dtype)
    layer = next(x for x in found.layers if x.head)
    weight = found.state[layer.parameter]

    def mean(w: Tensor) -> Tensor:
        total, count = 0.0, 0
        for batch in found.train:
            batch = batch.to("cpu", weight.dtype)
            inputs = ((), batch.inputs) if isinstance(batch.inputs, dict) else (batch.inputs, {})
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                out = functional_call(found.model, {layer.parameter: w}, *inputs)
            out, y = getattr(out, "logits", out), batch.targets
            if CASES[name].loss != "cross-entropy":
                out, y = out[:, :-1].flatten(0, 1), y[:, 1:].flatten()
            total = total + nn.functional.cross_entropy(out, y, ignore_index=-100, reduction="sum")
            count += int((y != -100).sum())
        return total / count
    point = weight.clone().requires_grad_()
    (slope,) = torch.autograd.grad(mean(point), point, create_graph=True)
    ones = torch.eye(point.numel(), dtype=point.dtype).reshape(-1, *point.shape)
    columns = torch.autograd.grad(slope, point, ones, is_grads_batched=True)[0]
    truth = columns.reshape(point.numel(), -1).trace().item()
    assert found.risk.value() == pytest.approx(mean(weight).item(), rel=rounding)
    rows = gm.measure(found, "hessian-trace", rtol=0.1, layer_rtol=0.2, max_passes=30).set_index("layer")
    value, stderr = rows.loc[layer.name, ["value", "stderr"]]
    assert abs(value - truth) <= 4 * stderr + rounding * abs(truth)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_loss_of_a_causal_model_is_per_token_whatever_the_batches(subject, name):
    found = subject(name, "float64")
    ones = [batch.select(slice(i, i + 1)) for batch in found.train for i in range(len(batch))]
    again = gm.subject(found.model, dict(found.start), Batches(ones, "train"), loss=found.loss, device="cpu",
                       dtype="float64")
    assert again.risk.value() == pytest.approx(found.risk.value(), rel=1e-12)
    own = []  # the model's own loss: a mean over the tokens of a batch, in float32
    for batch in ones:
        labels = batch.targets
        with torch.no_grad():
            loss = found.model(**batch.inputs, labels=labels).loss.item()
        own.append((loss, int((labels[:, 1:] != -100).sum())))
    assert found.risk.value() == pytest.approx(sum(v * n for v, n in own) / sum(n for _, n in own), rel=1e-6)


def test_a_tied_head_is_one_weight_for_both_of_its_uses(subject):
    found = subject("gpt2", "float64")
    head = next(x for x in found.layers if x.head)
    assert (head.parameter, head.tied) == ("lm_head.weight", ("transformer.wte.weight",))
    batch = found.risk.place(next(iter(found.train)))
    moved = copy.deepcopy(found.model)
    with torch.no_grad():
        moved.transformer.wte.weight += 0.1
    expected = moved(**batch.inputs).logits
    torch.testing.assert_close(found.risk.outputs({"lm_head": found.risk.weights["lm_head"] + 0.1}, batch), expected)
    stored = {k: v for k, v in found.start.items() if k != "lm_head.weight"}  # as safetensors stores it
    again = gm.subject(found.model, stored, found.train, loss=found.loss, device="cpu", dtype="float64")
    assert again.fingerprint == found.fingerprint
    rows = gm.measure(found, "distance")
    assert not rows["layer"].isin(["transformer.wte.weight", "lm_head.weight"]).any()
    direct = (found.model.lm_head.weight - found.start["transformer.wte.weight"]).norm().item()
    assert rows.set_index(["layer", "term"]).loc[("lm_head", "frobenius"), "value"] == pytest.approx(direct)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_an_audit_of_words_has_no_failing_rows(subject, name):
    found = subject(name)
    tested = gm.subject(found.model, dict(found.start), found.train, found.train, loss=found.loss, device="cpu")
    requests = study.applicable(tested, study.everything())
    assert ("margin" in {r.name for r in requests}) == (name == "bert")
    asked = {(r.name, r.parameters.get("variant")) for r in requests}
    assert not {("neyshabur2018", "theorem"), ("li2021", "theorem")} & asked  # words have no norm
    for request in requests:
        little = {k: v for k, v in LITTLE.items() if k in request.member.defaults}
        rows = study.attempt(tested, study.Request(request.name, {**little, **request.parameters}))
        assert not rows["error"].any(), rows["error"].iloc[0]
        if request.name == "gap":
            terms = rows.set_index("term")["value"]
            assert 0 <= terms["error-test"] == pytest.approx(terms["error-train"], rel=1e-12)
            assert terms["loss-test"] == pytest.approx(found.risk.value(), rel=1e-6)
