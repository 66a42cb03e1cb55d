"""Second directional derivatives of the operations that networks are made of, against central differences."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from genmeasure.curvature.forms import example_products, hessian_forms
from genmeasure.curvature.higher_order import directional, written_out
from genmeasure.curvature.products import batch_hessian_product
from genmeasure.curvature.taps import find_taps
from genmeasure.data.batches import Batches
from genmeasure.subject import subject

SCALE = torch.linspace(0.5, 1.5, 8, dtype=torch.float64)
OPERATIONS = {
    "layer norm": lambda z: F.layer_norm(z, (8,), SCALE, SCALE), "layer norm, plain": lambda z: F.layer_norm(z, (6, 8)),
    "instance norm": lambda z: F.instance_norm(z, weight=SCALE[:6], bias=SCALE[:6]),
    "group norm": lambda z: F.group_norm(z.transpose(1, 2), 2, SCALE), "rms norm": lambda z: F.rms_norm(z, (8,)),
    "batch norm": lambda z: F.batch_norm(z.transpose(1, 2) ** 2, SCALE, SCALE, SCALE, SCALE, False),
    "softmax": lambda z: torch.softmax(z, -1), "attention": lambda z: F.scaled_dot_product_attention(z, z, z),
    "gelu": F.gelu, "silu": F.silu, "mish": F.mish, "elu": F.elu, "softplus": F.softplus, "tanh": torch.tanh,
    "glu": lambda z: F.glu(z), "sigmoid": torch.sigmoid, "normalize": lambda z: F.normalize(z, dim=-1),
    "logsumexp": lambda z: torch.logsumexp(z, -1), "products": lambda z: z @ z.transpose(1, 2),
    "deviation": lambda z: z.std(-1),
    "cross-entropy": lambda z: F.cross_entropy(z.reshape(-1, 8), torch.arange(24) % 8, reduction="none"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_second_derivative(name):
    generator = torch.Generator().manual_seed(0)
    x, w, v = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((4, 6, 8), (8, 8), (8, 8)))
    zero, step = torch.zeros((), dtype=torch.float64), 1e-4
    with sdpa_kernel(SDPBackend.MATH):
        def along(a):
            return OPERATIONS[name](x @ (w + a * v))
        up, down = along(zero + step), along(zero - step)
        slope, second = directional(along, zero)
    assert torch.allclose(slope, (up - down) / (2 * step), rtol=1e-5, atol=1e-6)
    truth = (up + down - 2 * along(zero)) / step**2
    assert (second - truth).abs().max() < 1e-5 * truth.abs().max()


@pytest.mark.parametrize("operation", [torch.relu, F.leaky_relu, lambda z: z.max(-1).values, lambda z: z])
def test_second_derivative_of_a_piecewise_linear_operation_is_zero(operation):
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (directional(lambda a: operation(x * (1 + a)), torch.zeros((), dtype=torch.float64))[1] == 0).all()


def test_written_out_normalisation_has_the_same_values():
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for norm in (nn.LayerNorm(4), nn.LayerNorm((3, 4), elementwise_affine=False), nn.InstanceNorm1d(3, affine=True),
                 nn.InstanceNorm1d(3, track_running_stats=True).eval()):
        norm = norm.double()
        plain = norm(x)
        with written_out():
            assert torch.allclose(norm(x), plain, rtol=1e-12, atol=1e-14)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, activation="gelu", batch_first=True)
        self.gate = nn.Linear(8, 16)

    def forward(self, x):
        x = self.layer(self.embed(x))
        return self.head((x + F.glu(self.gate(x)) + F.silu(x)).mean(1))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_forms_of_a_transformer_layer():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, start = Encoder().double(), Encoder().double()
        x, y = torch.randn(6, 5, 4).double(), torch.randint(0, 3, (6,))
    s = subject(net, start, Batches.from_arrays(x, y), dtype="float64", device="cpu")
    assert [k.name for k in s.layers] == ["embed", "layer.self_attn.in_proj", "layer.self_attn.out_proj",
                                          "layer.linear1", "layer.linear2", "gate", "head"]
    batch, step = next(iter(s.train)), 1e-4
    taps = find_taps(s.risk)
    assert taps is not None
    for layer in s.layers:
        v, w = s.displacement(layer), s.weight(layer)
        with torch.no_grad():
            up, here, down = (s.risk.losses({layer.name: w + a * v}, batch) for a in (step, 0, -step))
        truth = (up + down - 2 * here) / step**2
        size = truth.abs().max()
        for way in (taps, None):
            assert (hessian_forms(s.risk, {layer.name: v}, way)[:, 0] - truth).abs().max() < 1e-4 * size
            products = example_products(s.risk, layer, batch, way)(v.reshape(1, -1).expand(6, -1)) @ v.reshape(-1)
            assert (products - truth).abs().max() < 1e-4 * size
        whole = (batch_hessian_product(s.risk, batch, {layer.name: v})[layer.name] * v).sum()
        assert (whole - truth.sum()).abs() < 1e-4 * size
