"""The spectral norm of a convolution as the linear map that it is, from both sides."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from genmeasure.layers import Layer
from genmeasure.norms import spectral
from genmeasure.spectral import operator_norm, operator_norm_upper


def dense(conv, size):
    """The layer, its weight and its dense matrix [outputs, inputs], by columns of unit vectors, in float64."""
    x = torch.eye(conv.in_channels * math.prod(size), dtype=torch.float64).reshape(-1, conv.in_channels, *size)
    with torch.no_grad():
        out = conv.double()(x) - (0 if conv.bias is None else conv.bias.reshape(-1, *[1] * len(size)))
    layer = Layer("", "weight", conv, tuple(x.shape[1:]), tuple(out.shape[1:]))
    return layer, conv.weight.detach(), out.flatten(1).T.numpy()


def random_geometry(seed):
    """A convolution of one or two dimensions with everything drawn: kernel, stride, padding, dilation, groups."""
    draw = np.random.default_rng(seed)
    axes, groups = int(draw.integers(1, 3)), int(draw.integers(1, 4))
    kernel, stride, padding, dilation = (tuple(int(v) for v in draw.integers(low, high, axes)) for low, high in
                                         ((1, 6), (1, 4), (0, 4), (1, 4)))
    size = tuple((k - 1) * d + 1 + int(draw.integers(0, 6)) for k, d in zip(kernel, dilation, strict=True))
    kind = (nn.Conv1d, nn.Conv2d)[axes - 1]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        conv = kind(groups * int(draw.integers(1, 4)), groups * int(draw.integers(1, 4)), kernel, stride, padding,
                    dilation, groups, bias=bool(draw.integers(0, 2)))
    return conv, size


@pytest.mark.parametrize("seed", range(30))
def test_random_geometries_agree_with_the_dense_operator(seed):
    layer, weight, matrix = dense(*random_geometry(seed))
    truth = np.linalg.norm(matrix, 2)
    assert operator_norm(layer, weight) == pytest.approx(truth, rel=1e-6)
    assert truth <= operator_norm_upper(layer, weight) * (1 + 1e-12)


@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": 1, "stride": 2}, {"padding": 2, "dilation": 2}])
def test_the_upper_side_is_close_where_the_map_is_large(options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer, weight, matrix = dense(nn.Conv2d(2, 3, 3, bias=False, **options), (12, 12))
    truth = np.linalg.norm(matrix, 2)
    assert truth <= operator_norm_upper(layer, weight) <= 1.15 * truth


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_the_upper_side_with_padding_that_repeats_pixels(mode):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer, weight, matrix = dense(nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode), (5, 5))
    truth = np.linalg.norm(matrix, 2)
    assert truth <= operator_norm_upper(layer, weight) <= 2.5 * truth


def test_a_kernel_of_one_and_a_linear_layer_have_no_gap():
    layer, weight, _ = dense(nn.Conv2d(3, 4, 1), (5, 5))
    assert operator_norm_upper(layer, weight) == pytest.approx(spectral(weight), rel=1e-8)
    linear = nn.Linear(5, 3)
    layer = Layer("", "weight", linear, (5,), (3,))
    assert operator_norm_upper(layer, linear.weight) == pytest.approx(spectral(linear.weight.detach()), rel=1e-8)


def test_a_kernel_of_zeros():
    layer, weight, _ = dense(nn.Conv2d(2, 2, 3), (4, 4))
    assert operator_norm(layer, 0 * weight) == operator_norm_upper(layer, 0 * weight) == 0


CONVOLUTIONS = [
    {"out_channels": 4, "in_channels": 3, "kernel_size": 3, "stride": 1, "padding": 1, "size": 8},
    {"out_channels": 4, "in_channels": 3, "kernel_size": 3, "stride": 2, "padding": 1, "size": 8},
    {"out_channels": 4, "in_channels": 3, "kernel_size": 1, "stride": 1, "padding": 0, "size": 8},
    {"out_channels": 4, "in_channels": 4, "kernel_size": 3, "stride": 2, "padding": 0, "size": 7, "groups": 2},
    {"out_channels": 2, "in_channels": 2, "kernel_size": 3, "stride": 1, "padding": 2, "size": 6, "dilation": 2},
    {"out_channels": 3, "in_channels": 2, "kernel_size": 4, "stride": 3, "padding": 1, "size": 9},
]


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_operator_norm_of_a_convolution(options):
    options = dict(options)
    size = options.pop("size")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv = nn.Conv2d(**options, bias=False)
    x = torch.zeros(1, options["in_channels"], size, size)
    out = conv(x).shape[1:]
    layer = Layer("", "weight", conv, tuple(x.shape[1:]), tuple(out))
    weight = conv.weight.detach()
    dense = torch.func.jacrev(conv)(x).reshape(math.prod(out), -1).detach().double().numpy()
    truth = np.linalg.norm(dense, 2)
    norm = operator_norm(layer, weight)
    assert norm == pytest.approx(truth, rel=1e-5)
    kernel, stride = options["kernel_size"], options["stride"]
    if options.get("groups", 1) == 1:
        assert spectral(weight) <= norm * (1 + 1e-6)
        assert norm <= math.ceil(kernel / stride) * options.get("dilation", 1) * spectral(weight) * (1 + 1e-6)
        if kernel == 1:
            assert norm == pytest.approx(spectral(weight), rel=1e-5)


def test_operator_norm_matches_the_recorded_kernels():
    """measures.md 4, first row: the first kernel after torch.manual_seed(0), drawn in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kernel = torch.randn(4, 3, 3, 3)
    conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    assert operator_norm(Layer("", "weight", conv, (3, 8, 8), (4, 8, 8)), kernel) == pytest.approx(10.559, abs=1e-3)
    assert spectral(kernel) == pytest.approx(7.302, abs=1e-3)


@pytest.mark.parametrize("options", [{"padding": "same"}, {"padding": 1, "padding_mode": "circular"}])
def test_operator_norm_of_other_paddings(options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv = nn.Conv2d(2, 3, 3, **options)
    x = torch.zeros(1, 2, 5, 5)
    dense = torch.func.jacrev(conv)(x).reshape(75, -1).detach().double().numpy()
    norm = operator_norm(Layer("", "weight", conv, (2, 5, 5), (3, 5, 5)), conv.weight.detach())
    assert norm == pytest.approx(np.linalg.norm(dense, 2), rel=1e-5)
