"""Networks small enough for a dense Hessian, and everything read off from it in float64."""

import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev

from genmeasure.curvature.noise import moved_losses
from genmeasure.curvature.perturbation import Perturbed
from genmeasure.data.batches import Batches
from genmeasure.losses import Loss
from genmeasure.subject import subject


class Net(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.inner = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3 * 4, 3)
        self.activation = activation

    def forward(self, x):
        x = self.activation(self.norm(self.conv(x)))
        x = self.activation(x + self.inner(x))
        return self.head(nn.functional.avg_pool2d(x, 2).flatten(1))


def make(activation, batch_size=5, examples=12, dtype="float64", confidence=None):
    """confidence: how many times larger the head's weights are made, with labels that the network predicts."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, start = Net(activation).double(), Net(activation).double()
        for module in (net, start):
            module.norm.running_mean.normal_()
            module.norm.running_var.uniform_(0.5, 2)
            module.norm.weight.data.uniform_(0.5, 2)
        x, y = torch.randn(examples, 1, 4, 4).double(), torch.randint(0, 3, (examples,))
        if confidence is not None:
            net.head.weight.data.mul_(confidence)
            y = net.eval()(x).argmax(1)
    return subject(net, start, Batches.from_arrays(x, y, batch_size=batch_size), dtype=dtype, device="cpu")


RELU, TANH = torch.relu, torch.tanh


class Dense:
    """Everything from full matrices: per-example losses as a function of one flat weight vector."""

    def __init__(self, s):
        self.subject, self.layers = s, s.layers
        self.shapes = [s.weight(x).shape for x in s.layers]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.point = torch.cat([s.weight(x).reshape(-1) for x in s.layers])
        batches = list(s.train)
        self.x = torch.cat([b.inputs[0] for b in batches])
        self.y = torch.cat([b.targets for b in batches])
        self.rows = [slice(sum(self.sizes[:i]), sum(self.sizes[:i + 1])) for i in range(len(self.sizes))]

    def outputs(self, flat, rows=slice(None)):
        pieces = zip(self.layers, flat.split(self.sizes), self.shapes, strict=True)
        named = {layer.parameter: piece.reshape(shape) for layer, piece, shape in pieces}
        return functional_call(self.subject.model, named, (self.x[rows],))

    def output_jacobian(self, layer):
        """[examples, outputs, weights of the layer]"""
        return jacrev(self.outputs)(self.point)[:, :, self.rows[self.layers.index(layer)]]

    def loss(self, flat, rows=slice(None)):
        return nn.functional.cross_entropy(self.outputs(flat, rows), self.y[rows])

    def hessian(self, rows=slice(None)):
        return hessian(lambda w: self.loss(w, rows))(self.point)


def small_net_with(loss_function):
    """A float64 subject of seven examples with a loss of one's own, on targets of zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        x = torch.randn(7, 3).double()
    loss = Loss("own", loss_function, classification=False)
    return subject(net, net, Batches.from_arrays(x, torch.zeros(7), batch_size=4), loss=loss, dtype="float64",
                   device="cpu")


class Given:
    """Noise that a test chose, u by layer."""

    def __init__(self, noise):
        self.noise = noise

    def moves(self, sigma):
        return {k: lambda w, u=u: w + sigma * u for k, u in self.noise.items()}


def noise_differences(s, batch, noise, sigma, one_sided=False):
    """L(W + sigma u) - L(W), or the mean with that of -u, for the sum of a batch's losses."""
    moved = moved_losses(s.risk, Perturbed(s.risk, s.layers), [Given(noise)], batch, [sigma], one_sided=one_sided)
    return moved.sum().item() - s.risk.batch_loss(batch).item()


def assert_calibrated(z):
    """z [seeds, quantities] = (estimate - truth) / stderr: mean 0, spread 1, and 95 % intervals that cover."""
    z = torch.as_tensor(z, dtype=torch.float64)
    covered = (z.abs() < 1.96).double().mean(0)
    assert (z.mean(0).abs() < 3.3 / len(z) ** 0.5).all(), z.mean(0)
    assert ((z.std(0, correction=0) > 0.85) & (z.std(0, correction=0) < 1.15)).all(), z.std(0)
    assert ((covered >= 0.92) & (covered <= 0.985)).all(), covered
