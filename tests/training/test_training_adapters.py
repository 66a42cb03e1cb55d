"""Low-rank and deep factors: attached, trained, merged."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from genmeasure.data.batches import Batches
from genmeasure.errors import InputError
from genmeasure.training.adapters.deep_product import DeepProduct
from genmeasure.training.adapters.low_rank import LowRank
from genmeasure.training.adapters.peft_folder import write_peft
from genmeasure.training.algorithm import get_algorithm
from genmeasure.training.context import Context
from genmeasure.training.loop import fine_tune
from genmeasure.training.probes.noise import Noise
from genmeasure.training.probes.uphill import Uphill

RECIPES = [LowRank(2), DeepProduct(), DeepProduct(width=None), DeepProduct(depth=2, epsilon=0.3)]


def seeded():
    return torch.Generator().manual_seed(0)


def attached(model, recipe, head=None):
    adapter = recipe.prepare(Context.of(model, head=head))
    adapter.attach(model, seeded())
    return adapter


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("recipe", RECIPES)
def test_attaching_and_merging_change_nothing(net, recipe):
    net.conv1.weight.requires_grad_(False)
    x, before = torch.randn(4, 1, 8, 8, generator=seeded()), snapshot(net)
    trainable = [(name, p.requires_grad) for name, p in net.named_parameters()]
    net.eval()
    outputs = net(x)
    adapter = attached(net, recipe)
    assert torch.equal(net(x), outputs)
    adapter.merge(net)
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert [(name, p.requires_grad) for name, p in net.named_parameters()] == trainable
    assert type(net.conv2) is nn.Conv2d


@pytest.mark.parametrize("recipe", RECIPES)
def test_merged_weights_give_the_same_outputs(net, recipe):
    net = net.double()
    before = snapshot(net)
    adapter = attached(net, recipe)
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=seeded(), dtype=p.dtype)
    net.eval()
    x = torch.randn(4, 1, 8, 8, generator=seeded(), dtype=torch.float64)
    outputs = net(x)
    adapter.merge(net)
    torch.testing.assert_close(net(x), outputs, rtol=1e-12, atol=1e-12)
    for name, tensor in before.items():
        assert torch.equal(tensor, net.state_dict()[name]) == (name not in (
            "conv1.weight", "conv2.weight", "head.weight", "head.bias"))
    change = (net.conv2.weight - before["conv2.weight"]).flatten(1)
    if isinstance(recipe, LowRank):
        assert torch.linalg.matrix_rank(change, rtol=1e-9) == 2


def test_attention_and_embeddings_of_many_models(torchvision):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(24, 2))
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    for model, layers, count, inputs, head in (
            (encoder, "*", 4, torch.randn(2, 3, 8, generator=seeded()), None),
            (bert(), "*.query,*.value", 2, ids, None), (gpt2(), "*.attn.c_attn", 1, ids, "score")):
        for recipe in (LowRank(2, layers=layers), DeepProduct(layers=layers)):
            model.eval()
            before, names = snapshot(model), list(model.state_dict())
            outputs = getattr(model(inputs), "logits", model(inputs))
            adapter = attached(model, recipe, head)
            assert len(adapter.names) == count
            torch.testing.assert_close(getattr(model(inputs), "logits", model(inputs)), outputs)
            trained = [name for name, p in model.named_parameters() if p.requires_grad]
            assert all("parametrizations" in name or adapter.context.in_head(name) for name in trained)
            getattr(model(inputs), "logits", model(inputs)).square().sum().backward()
            assert all(model.get_parameter(name).grad is not None for name in trained)
            model.zero_grad(set_to_none=True)
            adapter.merge(model)
            assert list(model.state_dict()) == names
            assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_first_steps_of_low_rank_adaptation():
    """B_1 = -rate (alpha/r) G A_0' and A_1 = A_0; then A_2 = A_1 - rate (alpha/r) B_1' G_1."""
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 1)).double()
    start = model[0].weight.detach().clone()
    target = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    adapter = attached(model, LowRank(2, alpha=3.0))
    change = adapter.changes["0.weight"]
    a, b = change.a.detach().clone(), torch.zeros(4, 2, dtype=torch.float64)
    optimizer = torch.optim.SGD([change.a, change.b], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (0.5 * (model[0].weight - target).square().sum()).backward()
        optimizer.step()
        gradient = start + 1.5 * b @ a - target
        a, b = a - 0.15 * b.T @ gradient, b - 0.15 * gradient @ a.T
    torch.testing.assert_close(change.a, a)
    torch.testing.assert_close(change.b, b)


@pytest.mark.parametrize("recipe", [LowRank(2), DeepProduct(width=2, epsilon=0.5)])
def test_least_squares_ends_at_the_truncated_singular_values(recipe):
    """Eckart and Young: the best change of rank 2 keeps the two largest singular values of what is missing."""
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 1)).double()
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        left, right = (torch.linalg.qr(torch.randn(n, 4, dtype=torch.float64)).Q for n in (4, 5))
    missing = left @ torch.diag(torch.tensor([3.0, 2.0, 0.5, 0.2], dtype=torch.float64)) @ right.T
    target = model[0].weight.detach() + missing
    adapter = attached(model, recipe)
    change = adapter.changes["0.weight"]
    if isinstance(recipe, DeepProduct):
        target = target - change.start  # which is taken off
    optimizer = torch.optim.LBFGS(change.parameters(), max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14,
                                  line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = (model[0].weight - target).square().sum()
        value.backward()
        return value
    optimizer.step(loss)
    expected = target - left[:, 2:] @ torch.diag(torch.tensor([0.5, 0.2], dtype=torch.float64)) @ right[:, 2:].T
    torch.testing.assert_close(model[0].weight, expected, rtol=1e-5, atol=1e-5)


def test_factors_of_deep_low_rank_adaptation_start_orthogonal():
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(4, 2)).double()
    for width, depth in ((None, 3), (2, 4)):
        adapter = attached(model, DeepProduct(depth, width, epsilon=0.01))
        change = adapter.changes["0.weight"]
        inner = width or 12
        assert [tuple(f.shape) for f in change.factors] == [(inner, 12), *[(inner, inner)] * (depth - 2), (4, inner)]
        for factor in change.factors:
            narrow = factor if factor.shape[0] <= factor.shape[1] else factor.T
            torch.testing.assert_close(narrow @ narrow.T, 1e-4 * torch.eye(len(narrow), dtype=torch.float64),
                                       rtol=1e-5, atol=1e-9)
        values = torch.linalg.svdvals(change.start)[:min(inner, 4)]
        torch.testing.assert_close(values, torch.full_like(values, 0.01 ** depth), rtol=1e-4, atol=0)
        adapter.merge(model)


@pytest.mark.parametrize("probe", [Noise(0.1, two_point=True), Uphill(0.5)])
def test_probes_perturb_the_factors(net, probe):
    net.drop.p = 0.0
    attached(net, LowRank(2))
    frozen, seen = net.conv2.parametrizations.weight.original, []
    with torch.no_grad():
        net.conv2.parametrizations.weight[0].b += 0.1

    def loss():
        seen.append((frozen.clone(), net.conv2.weight.detach().clone(), net.conv2.parametrizations.weight[0].a.clone()))
        return net(torch.ones(4, 1, 8, 8)).square().mean()
    before = net.conv2.weight.detach().clone()
    probe(net, loss, seeded())
    assert torch.equal(seen[0][0], seen[-1][0])
    assert not torch.equal(seen[0][1], seen[-1][1])
    assert not torch.equal(seen[0][2], seen[-1][2])
    assert torch.equal(net.conv2.weight, before)
    assert frozen.grad is None


@pytest.mark.parametrize("name", ["lora", "deep-lora"])
def test_fine_tuning_returns_plain_weights(name, net, train, settings):
    result = fine_tune(net, get_algorithm(name, layers="conv2"), train, settings=settings).model
    assert list(result.state_dict()) == list(net.state_dict())
    assert all(p.requires_grad for p in result.parameters())
    same = {key: torch.equal(p, net.get_parameter(key)) for key, p in result.named_parameters()}
    assert {key for key, equal in same.items() if not equal} == {"conv2.weight", "head.weight", "head.bias"}


def test_adapters_with_a_probe_and_an_average(net, train, validation, settings):
    algorithm = replace(get_algorithm("ema"), adapter=LowRank(2), probe=Noise(0.01, two_point=True))
    result = fine_tune(net, algorithm, train, validation, settings=replace(settings, epochs=3, select="loss"))
    assert list(result.model.state_dict()) == list(net.state_dict())
    change = (result.model.conv2.weight - net.conv2.weight).detach().flatten(1).double()
    assert torch.linalg.matrix_rank(change, rtol=1e-5) == 2
    assert torch.equal(result.model.conv1.bias, net.conv1.bias)


def bert():
    from transformers import BertConfig, BertForSequenceClassification
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return BertForSequenceClassification(BertConfig(
            vocab_size=16, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))


def sentences():
    ids = torch.randint(1, 16, (24, 5), generator=seeded())
    return Batches([{"input_ids": ids, "labels": ids[:, 0] % 2}])


def gpt2():
    from transformers import GPT2Config, GPT2ForSequenceClassification
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return GPT2ForSequenceClassification(GPT2Config(vocab_size=16, n_positions=8, n_embd=12, n_layer=1, n_head=2,
                                                        pad_token_id=0))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # which peft asks for
@pytest.mark.parametrize(("build", "head", "layers"), [(bert, "classifier", "*.query,*.value"),
                                                       (gpt2, "score", "*.c_attn")])
def test_peft_reads_what_was_written(tmp_path, settings, build, head, layers):
    from peft import PeftModel
    start = build()
    result = fine_tune(start, get_algorithm("lora", rank=3, alpha=6.0, layers=layers), sentences(), head=head,
                       settings=replace(settings, learning_rate=0.05))
    folder = write_peft(tmp_path / "adapter", result.algorithm.adapter, result.model, base="start")
    theirs = PeftModel.from_pretrained(build(), folder).eval()
    ids = next(iter(sentences())).inputs["input_ids"]
    with torch.no_grad():
        expected = result.model.eval()(ids).logits
        torch.testing.assert_close(theirs(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)
        assert (expected - start.eval()(ids).logits).abs().max() > 0.01


def test_factors_read_back_are_the_merged_weights(net, tmp_path, train, settings):
    from genmeasure.checkpoints.formats import adapter, safetensors_file
    result = fine_tune(net, get_algorithm("lora", rank=2, layers="conv2"), train, settings=settings)
    folder = write_peft(tmp_path, result.algorithm.adapter, result.model)
    merged = adapter.read(folder, safetensors_file.read).merged(net.state_dict())
    for name, p in result.model.named_parameters():
        torch.testing.assert_close(merged[name], p.detach())


def test_what_peft_does_not_know_is_refused(tmp_path):
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(24, 2))
    adapter = LowRank(2).prepare(Context.of(model))
    with pytest.raises(InputError) as caught:
        write_peft(tmp_path / "a", adapter, model)
    assert str(caught.value).endswith("give result.algorithm.adapter after fine_tune")
    adapter.attach(model, seeded())
    adapter.merge(model)
    with pytest.raises(InputError) as caught:
        write_peft(tmp_path / "a", adapter, model)
    assert str(caught.value).endswith("write the merged weights instead")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("make", "end"), [
    (lambda: LowRank(0), "it must be at least 1"),
    (lambda: LowRank(alpha=0.0), "the scale of the factors must be above 0"),
    (lambda: DeepProduct(depth=1), "a product needs at least 2 factors"),
    (lambda: DeepProduct(width=0), "or None for the larger side of a weight"),
    (lambda: DeepProduct(epsilon=0.0), "so it must be above 0"),
    (lambda: LowRank(layers="conv").prepare(Context.of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))),
     "layers that can take factors are: 0.weight"),
    (lambda: LowRank().prepare(Context.of(nn.Linear(2, 2))), "layers that can take factors are: none"),
])
def test_bad_adapters(make, end):
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).endswith(end)
