"""Balls of row sums, groups of layers, radii relative to the start and to plain fine-tuning."""

import itertools

import pytest
import torch
from torch import nn

from genmeasure.errors import InputError
from genmeasure.training.algorithm import get_algorithm
from genmeasure.training.constraints.layer_balls import LayerBalls
from genmeasure.training.constraints.projections import project_rows, rescale_rows
from genmeasure.training.context import Context
from genmeasure.training.groups import by_layer, layer_weights
from genmeasure.training.hooks import constrain_steps
from genmeasure.training.loop import fine_tune


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_rescaled_and_nearest_row():
    for project, expected in ((rescale_rows, [1.5, 2.0]), (project_rows, [1.25, 2.25])):
        weight = torch.tensor([[3.0, 4.0], [1.0, -1.0]], dtype=torch.float64)
        project(weight, torch.zeros(2, 2, dtype=torch.float64), 3.5)
        torch.testing.assert_close(weight, torch.tensor([expected, [1.0, -1.0]], dtype=torch.float64))


def test_nearest_row_against_all_supports():
    """The nearest point of the l1 ball is found on one of its faces: each support, the excess shared evenly."""
    weight = normal(6, 5)
    for row in weight.clone():
        candidates = []
        for size in range(1, 6):
            for support in itertools.combinations(range(5), size):
                point = torch.zeros_like(row)
                theta = (row[list(support)].abs().sum() - 1.2) / size
                point[list(support)] = row[list(support)].sign() * (row[list(support)].abs() - theta)
                if (point * row >= 0).all():
                    candidates.append(point)
        nearest = min(candidates, key=lambda point: (point - row).norm().item())
        projected = row.clone()[None]
        project_rows(projected, torch.zeros_like(projected), 1.2)
        torch.testing.assert_close(projected[0], nearest if row.abs().sum() > 1.2 else row)


@pytest.mark.parametrize("project", [rescale_rows, project_rows])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rows_land_on_the_boundary_and_stay_bit_for_bit(project, dtype):
    for scale, shape in itertools.product((1e-3, 1.0, 100.0), ((50, 40), (6, 3, 5), (6, 3, 2, 2, 2))):
        center = normal(*shape, dtype=dtype) * scale
        weight = center + normal(*shape, seed=1, dtype=dtype)
        project(weight, center, 0.7)
        once = weight.clone()
        project(weight, center, 0.7)
        assert torch.equal(weight, once)
        if dtype == torch.float64:
            torch.testing.assert_close((weight - center).flatten(1).abs().sum(1),
                                       torch.full((shape[0],), 0.7, dtype=dtype))


@pytest.mark.parametrize("project", [rescale_rows, project_rows])
def test_radius_of_each_row(project):
    center, radii = normal(3, 4), torch.tensor([0.0, 0.5, 1e9])
    weight = center + 1
    weight[0] = torch.inf
    project(weight, center, radii)
    assert torch.equal(weight[0], center[0])
    assert (weight[1] - center[1]).abs().sum().item() == pytest.approx(0.5)
    assert torch.equal(weight[2], center[2] + 1)
    weight[0] = torch.nextafter(center[0], torch.tensor(torch.inf, dtype=torch.float64))
    project(weight, center, radii)
    assert torch.equal(weight[0], center[0])


def test_rows_are_outputs_in_every_layout():
    from transformers.pytorch_utils import Conv1D
    with torch.random.fork_rng([]):
        model = nn.Sequential(Conv1D(3, 5), nn.ConvTranspose1d(4, 2, 3), nn.LSTM(3, 2), nn.Linear(2, 2)).double()
    projection = LayerBalls(0.3, norm="mars").prepare(Context.of(model))
    with torch.no_grad():
        for p in model.parameters():
            p += 1
    projection(model)
    start = {ball.name: ball.center for ball in projection.balls}
    assert list(start) == ["0.weight", "1.weight", "2.weight_ih_l0", "2.weight_hh_l0", "3.weight"]
    for name, dimensions in (("0.weight", 0), ("1.weight", (0, 2)), ("2.weight_ih_l0", 1)):
        sums = (model.get_parameter(name) - start[name]).abs().sum(dimensions)
        torch.testing.assert_close(sums, torch.full_like(sums, 0.3))


def test_kernels_in_one_and_three_dimensions_are_layers():
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Conv3d(2, 2, 2), nn.LayerNorm([2, 2]), nn.Embedding(4, 3),
                          nn.MultiheadAttention(4, 2), nn.Linear(2, 2))
    model.position = nn.Parameter(torch.zeros(1, 5, 4))
    assert list(layer_weights(model)) == ["0.weight", "1.weight", "4.in_proj_weight", "4.out_proj.weight", "5.weight"]
    report = {row["name"]: row["rule"] for row in LayerBalls().prepare(Context.of(model, head="5")).report()}
    assert {name for name, rule in report.items() if rule == "ball"} == set(layer_weights(model))
    assert report["3.weight"] == report["position"] == report["2.weight"] == "free"
    named = LayerBalls({"3": 0.5, "position": 0.25}).prepare(Context.of(model, head="5"))
    assert [(b.name, b.radius) for b in named.balls] == [("position", 0.25), ("3.weight", 0.5), ("5.weight", 8.0)]


def radii(model, head, **given):
    projection = LayerBalls(**given).prepare(Context.of(model, head=head))
    return {b.name: b.radius for b in projection.balls}, set(projection.free)


def test_stages_of_resnet18(torchvision):
    with torch.device("meta"):
        model = torchvision.models.resnet18()
    found, free = radii(model, "fc", radius=0.5, growth=3.0, groups="resnet", head_radius=6.0)
    stages = {f"layer{i}": [r for name, r in found.items() if name.startswith(f"layer{i}.")] for i in (1, 2, 3, 4)}
    assert stages == {"layer1": [0.5] * 4, "layer2": [0.5] * 5, "layer3": [1.5] * 5, "layer4": [4.5] * 5}
    assert found["fc.weight"] == 6.0
    assert found["layer3.0.downsample.0.weight"] == 1.5
    assert len(found) == 20
    assert {"conv1.weight", "bn1.weight", "layer4.1.bn2.weight", "fc.bias"} <= free


def test_batch_norm_of_resnet18_follows_its_stage(torchvision):
    with torch.device("meta"):
        model = torchvision.models.resnet18()
    projection = LayerBalls(0.5, 3.0, groups="resnet", batch_norm=True).prepare(Context.of(model, head="fc"))
    clips = {c.module: c.radius for c in projection.clips}
    assert len(clips) == 19  # 20 with the stem's, which is free
    assert clips["layer3.0.bn1"] == 1.5
    assert clips["layer4.0.downsample.1"] == 4.5


def test_encoder_of_vision_transformers(torchvision):
    import timm
    from transformers import ViTConfig, ViTForImageClassification
    with torch.device("meta"):
        base = torchvision.models.vit_b_16()
    found, free = radii(base, "heads.head", radius=0.75, groups="vit")
    assert len(found) == 12 * 4 + 1
    assert set(found.values()) == {0.75, 8.0}
    assert {"conv_proj.weight", "class_token", "encoder.pos_embedding"} <= free
    small = timm.models.VisionTransformer(img_size=16, patch_size=8, embed_dim=12, depth=2, num_heads=2, num_classes=3)
    found, free = radii(small, "head", radius=0.75, groups="vit")
    assert len(found) == 2 * 4 + 1
    assert {"patch_embed.proj.weight", "cls_token", "pos_embed"} <= free
    other = ViTForImageClassification(ViTConfig(hidden_size=12, num_hidden_layers=2, num_attention_heads=2,
                                                intermediate_size=16, image_size=16, patch_size=8))
    found, free = radii(other, "classifier", radius=0.75, groups="vit")
    assert len(found) == 2 * 6 + 1
    assert {"vit.embeddings.cls_token", "vit.embeddings.patch_embeddings.projection.weight"} <= free


def test_attention_and_encoder_of_bert():
    from transformers import BertConfig, BertForSequenceClassification
    model = BertForSequenceClassification(BertConfig(
        vocab_size=16, hidden_size=12, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, num_labels=3))
    found, free = radii(model, "classifier", radius=0.5, growth=4.0, groups="bert")
    values = list(found.values())
    assert [values.count(r) for r in (0.5, 2.0, 8.0)] == [3 * 4, 3 * 2, 1]
    assert found["bert.encoder.layer.2.attention.output.dense.weight"] == 0.5
    assert found["bert.encoder.layer.2.output.dense.weight"] == 2.0
    assert {"bert.pooler.dense.weight", "bert.embeddings.word_embeddings.weight"} <= free
    weights = by_layer(Context.of(model, head="classifier"), 1.0, 4.0, "bert")
    assert weights["bert.encoder.layer.0.attention.output.LayerNorm.weight"] == 4.0
    assert weights["bert.encoder.layer.0.attention.self.query.bias"] == 1.0


def test_groups_that_fit_no_layer_are_refused(torchvision):
    with torch.device("meta"):
        model = torchvision.models.vgg11()
    with pytest.raises(InputError) as caught:
        radii(model, "classifier.6", groups="resnet")
    assert str(caught.value).endswith("give a number for each layer by name, or groups='layers'")
    assert len(radii(model, "classifier.6")[0]) == 11


def test_ratio_to_the_start(net):
    net = net.double()
    context = Context.of(net)
    balls = {b.name: b for b in LayerBalls(0.1, head_radius=0.2, head_about="start",
                                           relative_to="start").prepare(context).balls}
    assert balls["conv2.weight"].radius == pytest.approx(0.1 * net.conv2.weight.norm().item())
    assert balls["head.weight"].radius == pytest.approx(0.2 * net.head.weight.norm().item())
    rows = LayerBalls({"conv2": 0.1}, head_radius=None, norm="mars", relative_to="start").prepare(context)
    torch.testing.assert_close(rows.balls[0].radius, 0.1 * net.conv2.weight.detach().flatten(1).abs().sum(1))
    assert rows.report()[0]["radius"] == pytest.approx(rows.balls[0].radius.max().item())
    clips = LayerBalls(0.1, batch_norm=True, relative_to="start").prepare(context).clips
    assert clips[0].radius == pytest.approx(0.1 / (1 + net.bn1.eps) ** 0.5)


def test_radii_from_plain_fine_tuning(net, train, settings):
    plain = fine_tune(net, "plain", train, settings=settings).model
    result = fine_tune(net, get_algorithm("layer-ball-fitted", scale=0.3, head_scale=0.9, batch_norm=True), train,
                       settings=settings)
    found = {row["name"]: row["radius"] for row in result.algorithm.constraint.report()}
    for name in ("conv1.weight", "conv2.weight"):
        moved = (plain.get_parameter(name) - net.get_parameter(name)).norm().item()
        assert found[name] == pytest.approx(0.3 * moved, rel=1e-5)
        ended = (result.model.get_parameter(name) - net.get_parameter(name)).norm().item()
        assert ended == pytest.approx(0.3 * moved, rel=1e-4)
    assert found["head.weight"] == pytest.approx(0.9 * plain.head.weight.norm().item(), rel=1e-5)

    def scale(model):
        return model.bn2.weight / (model.bn2.running_var + model.bn2.eps).sqrt()
    assert found["bn2.weight"] == pytest.approx(0.3 * (scale(plain) - scale(net)).abs().max().item(), rel=1e-5)
    rows = fine_tune(net, get_algorithm("layer-ball-fitted", norm="mars"), train, settings=settings)
    sums = (plain.conv2.weight - net.conv2.weight).flatten(1).abs().sum(1)
    assert rows.algorithm.constraint.report()[1]["radius"] == pytest.approx(0.5 * sums.max().item(), rel=1e-5)


def test_plain_fine_tuning_is_asked_for_within_fine_tune_only(net):
    with pytest.raises(InputError) as caught:
        LayerBalls(relative_to="plain").prepare(Context.of(net))
    assert str(caught.value).endswith("give radius={layer: number, …} instead")


@pytest.mark.parametrize(("given", "end"), [
    ({"groups": "resnett"}, "did you mean 'resnet'?"),
    ({"norm": "marss"}, "did you mean 'mars'?"),
    ({"relative_to": "plane"}, "did you mean 'plain'?"),
    ({"radius": {"conv1": 1.0}, "groups": "vit"}, "growth and groups go with a single number only"),
])
def test_bad_balls(given, end):
    with pytest.raises(InputError) as caught:
        LayerBalls(**given)
    assert str(caught.value).endswith(end)


def test_transposed_convolution_in_groups_has_no_rows():
    model = nn.Sequential(nn.ConvTranspose1d(4, 4, 3, groups=2), nn.Linear(2, 2))
    with pytest.raises(InputError) as caught:
        LayerBalls(norm="mars").prepare(Context.of(model))
    assert str(caught.value).endswith("or take the Frobenius norm")
    assert len(LayerBalls().prepare(Context.of(model)).balls) == 2


class Bowl(nn.Module):
    """f(W) = sum over rows of (w - t)' A (w - t) / 2, with its least value at the target T [2, 3]."""

    def __init__(self, isotropic=False):
        super().__init__()
        root = normal(3, 3, seed=4)
        self.matrix = torch.eye(3, dtype=torch.float64) if isotropic else root @ root.T + torch.eye(3)
        self.target = nn.Parameter(2 * normal(2, 3, seed=5), requires_grad=False)
        self.body = nn.Linear(3, 2, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.body.weight.copy_(normal(2, 3, seed=6))

    def forward(self):
        difference = self.body.weight - self.target
        return 0.5 * (difference @ self.matrix * difference).sum()


def minimised(model, **balls):
    start = model.body.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    constrain_steps(optimizer, model, LayerBalls(head_about="start", **balls))
    for _ in range(800):
        optimizer.zero_grad()
        model().backward()
        optimizer.step()
    optimizer.zero_grad()
    model().backward()
    return model.body.weight.detach() - start, model.body.weight.grad


def test_frobenius_ball_finds_the_constrained_minimum():
    """Karush-Kuhn-Tucker: on the sphere, the gradient points from the solution to the center."""
    difference, gradient = minimised(Bowl(), head_radius=0.8)
    assert difference.norm().item() == pytest.approx(0.8, rel=1e-9)
    multiplier = gradient.norm() / difference.norm()
    torch.testing.assert_close(gradient, -multiplier * difference, rtol=1e-6, atol=1e-8)
    inside, gradient = minimised(Bowl(), head_radius=50.0)
    assert inside.norm() < 50
    assert gradient.norm() < 1e-9


def test_nearest_rows_find_the_constrained_minimum():
    """Karush-Kuhn-Tucker of the l1 ball: equally large gradients where the row moved, none larger where it did not."""
    difference, gradient = minimised(Bowl(), head_radius=0.8, norm="l1-row")
    for row, slope in zip(difference, gradient, strict=True):
        assert row.abs().sum().item() == pytest.approx(0.8, rel=1e-9)
        moved, multiplier = row.abs() > 1e-12, slope.abs().max()
        torch.testing.assert_close(slope[moved], -multiplier * row[moved].sign(), rtol=1e-6, atol=1e-8)
    assert ((difference.abs() < 1e-12).sum() > 0).item()  # a corner, where the test says more


def test_rescaled_rows_keep_the_direction_on_a_round_bowl():
    model = Bowl(isotropic=True)
    direction = model.target - model.body.weight.detach()
    difference, _ = minimised(model, head_radius=0.8, norm="mars")
    torch.testing.assert_close(difference, 0.8 * direction / direction.abs().sum(1, keepdim=True))
