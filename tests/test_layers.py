import math

import pytest
import torch
from torch import nn

import genmeasure as gm
from genmeasure.data.batches import Batch
from genmeasure.errors import InputError
from genmeasure.layers import batch_norm_scale, find_layers, folded, forward
from genmeasure.norms import frobenius, mars, spectral, two_one
from genmeasure.spectral import operator_norm


def batch(*shape):
    return Batch((torch.zeros(shape),), torch.zeros(shape[0], dtype=torch.long))


class Residual(nn.Module):
    """Modules are registered in another order than they run in."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.norm2, self.norm1 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.second, self.first = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        x = torch.relu(self.norm1(self.first(x)))
        x = x + self.norm2(self.second(x))
        return self.head(x.mean((2, 3)))


def test_layers_come_in_the_order_in_which_they_run():
    layers = find_layers(Residual().eval(), batch(2, 1, 5, 5))
    assert [x.name for x in layers] == ["first", "second", "head"]
    assert [x.batch_norm for x in layers] == ["norm1", "norm2", None]
    assert [x.head for x in layers] == [False, False, True]
    assert layers[0].input_shape == (1, 5, 5)
    assert layers[0].output_shape == (4, 5, 5)
    assert layers[0].width == 100


def test_batch_norm_behind_something_in_place_is_not_the_layers():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(18, 2))
    assert find_layers(net.eval(), batch(2, 1, 5, 5))[0].batch_norm is None

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1), nn.Linear(25, 2)

        def forward(self, x):
            out = self.conv(x)
            out += x
            return self.head(self.norm(out).flatten(1))
    assert find_layers(Block().eval(), batch(2, 1, 5, 5))[0].batch_norm is None


def test_a_head_can_be_named_and_a_wrong_name_is_refused():
    assert find_layers(Residual().eval(), batch(2, 1, 5, 5), head="second")[1].head
    with pytest.raises(InputError, match=r"did you mean 'second'\?$"):
        find_layers(Residual().eval(), batch(2, 1, 5, 5), head="secnd")


def test_tied_weights_count_once():
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    net[1].weight = net[0].weight
    assert [x.name for x in find_layers(net, batch(2, 3))] == ["0"]


def test_the_head_is_what_runs_last_even_where_its_weight_ran_before():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
            self.blocks.append(self.blocks[0])
            self.embed, self.head = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            x = self.embed(x)
            for block in self.blocks:
                x = block(x)
            return self.head(x)
    layers = find_layers(Net(), batch(2, 3))
    assert [x.name for x in layers] == ["embed", "blocks.0", "blocks.1"]
    assert [x.name for x in layers if x.head] == ["embed"]
    assert layers[0].tied == ("head.weight",)
    assert [x.name for x in find_layers(Net(), batch(2, 3), head="head") if x.head] == ["embed"]
    assert [x.name for x in find_layers(Net(), batch(2, 3), head="blocks.1") if x.head] == ["blocks.1"]


class Conv1D(nn.Module):
    """As transformers writes it: a linear layer whose weight is [in, out]."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.empty(nx, nf).normal_(std=0.02)), nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


def test_a_transposed_linear_layer_has_the_norms_of_the_linear_one():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(Conv1D(5, 3), nn.ReLU(), nn.Linear(5, 2))
    own, head = find_layers(net, batch(2, 3))
    assert (own.name, own.parameter, own.width, own.convolution) == ("0", "0.weight", 5, False)
    linear = nn.Linear(3, 5)
    linear.weight.data = net[0].weight.data.T.clone()
    twin = find_layers(nn.Sequential(linear, nn.Linear(5, 2)), batch(2, 3))[0]
    weight, usual = net[0].weight.detach(), linear.weight.detach()
    assert own.matrix(weight).shape == (5, 3)
    for norm in (frobenius, spectral, mars, two_one):
        assert norm(own.matrix(weight)) == pytest.approx(norm(twin.matrix(usual)), rel=1e-12)
    assert operator_norm(own, weight) == pytest.approx(operator_norm(twin, usual), rel=1e-12)
    assert torch.equal(head.matrix(net[2].weight), net[2].weight)
    subject = gm.subject(net, net, [(torch.rand(4, 3), torch.tensor([0, 1, 0, 1]))], device="cpu")
    rows = gm.measure(subject, "norm").set_index(["layer", "term"])["value"]
    assert rows["0", "mars"] == pytest.approx(usual.abs().sum(1).max().item(), rel=1e-6)


def test_attention_counts_its_projections():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.attention(x, x, x)[0].mean(1))
    names = {x.parameter for x in find_layers(Net(), batch(2, 3, 4))}
    assert names == {"attention.in_proj_weight", "attention.out_proj.weight", "head.weight"}


def test_a_model_without_layers_is_refused():
    with pytest.raises(InputError, match="there is nothing to measure without one$"):
        find_layers(nn.ReLU(), batch(2, 3))


def test_folding_reproduces_the_network_up_to_its_shift():
    net = Residual().double().eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for norm in (net.norm1, net.norm2):
            norm.weight.data.normal_()
            norm.running_var.uniform_(0.5, 2)
        x = torch.randn(2, 1, 5, 5).double()
    layer = find_layers(net, Batch((x,), torch.zeros(2, dtype=torch.long)))[0]
    state = net.state_dict()
    weight = folded(layer, state, net)
    difference = net.norm1(net.first(x)) - net.norm1(net.first(torch.zeros_like(x)))
    assert torch.allclose(nn.functional.conv2d(x, weight, padding=1), difference, rtol=1e-10)
    assert torch.allclose(batch_norm_scale(layer, state, net), net.norm1.weight / (net.norm1.running_var + 1e-5).sqrt())


def test_folding_undoes_the_scale_of_a_convolution():
    """Ten times the convolution with its statistics rescaled is the same function and has the same folded norm."""
    net = Residual().double().eval()
    layer = find_layers(net, Batch((torch.zeros(2, 1, 5, 5).double(),), torch.zeros(2)))[0]
    before = folded(layer, net.state_dict(), net).norm()
    net.first.weight.data *= 1e3
    net.norm1.running_var *= 1e6
    assert folded(layer, net.state_dict(), net).norm() == pytest.approx(before.item(), rel=1e-4)


def test_row_norms_of_a_matrix_that_is_not_square():
    weight = torch.tensor([[1.0, -2.0, 3.0], [4.0, 0.0, 0.0]])
    assert mars(weight) == 6
    assert two_one(weight) == pytest.approx(math.sqrt(14) + 4)
    assert frobenius(weight) == pytest.approx(math.sqrt(30))
    assert spectral(weight) <= frobenius(weight) <= two_one(weight) <= math.sqrt(2) * frobenius(weight)


def test_outputs_may_be_tuples_or_carry_logits():
    class Output:
        def __init__(self, logits):
            self.logits = logits

    class Net(nn.Module):
        def forward(self, x):
            return Output((x, x))
    assert forward(Net(), batch(2, 3)).shape == (2, 3)
