"""Matrix sensing: does noise in pairs find the hidden matrix where one-sided noise does not?

    python analysis/matrix_sensing.py [--size 30] [--rank 2] [--steps 8000] [--seeds 10] [--device cpu]

Setting of Zhang, Li, Ju 2024, arXiv:2306.08553, smaller by default: X = U* U*' with U* ~ N(0, 1)^{size x rank}, known
through m = 5 size rank products <A_i, X> with symmetric Gaussian A_i; U is size x size, so that many U fit them all.
Every step uses all of them. Prints geometric means over the seeds with 95 % t-intervals of the logarithms.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import torch
from scipy.stats import t
from torch import Generator, Tensor, nn

from genmeasure.training.pieces import Probe
from genmeasure.training.probes.here import Here
from genmeasure.training.probes.noise import Noise

SIGMA = 0.02
RATE = 0.25
"""Times 1/size: the paper's learning rate 0.0025 at its size 100."""
PROBES: dict[str, Probe] = {
    "gradient descent": Here(), "one-sided noise, k = 1": Noise(SIGMA), "one-sided noise, k = 2": Noise(SIGMA, 2),
    "noise in pairs, k = 1": Noise(SIGMA, 1, two_point=True)}
COLUMNS = ("training loss", "validation loss", "distance to X")


class Sensing(nn.Module):
    """f(U) = 1/(4m) sum_i (<A_i, U U' - X>)²."""

    def __init__(self, size: int, rank: int, generator: Generator, device: torch.device):
        super().__init__()
        hidden = torch.randn(size, rank, generator=generator)
        self.hidden = (hidden @ hidden.T).to(device)
        self.training_set, self.validation_set = (
            symmetric(5 * size * rank, size, generator).to(device) for _ in range(2))
        self.factor = nn.Parameter(torch.randn(size, size, generator=generator).to(device))

    def forward(self) -> Tensor:
        return self.misfit(self.training_set).square().mean() / 4

    def misfit(self, measurements: Tensor) -> Tensor:
        return measurements @ (self.factor @ self.factor.T - self.hidden).flatten()

    @torch.no_grad()
    def figures(self) -> list[float]:
        """Training and validation loss and distance, each relative to U = 0."""
        losses = [self.misfit(a).square().mean() / (a @ self.hidden.flatten()).square().mean()
                  for a in (self.training_set, self.validation_set)]
        distance = (self.factor @ self.factor.T - self.hidden).norm() / self.hidden.norm()
        return [x.item() for x in (*losses, distance)]


def symmetric(count: int, size: int, generator: Generator) -> Tensor:
    """[count, size²]: (G + G')/2, G with independent N(0, 1) entries."""
    gaussian = torch.randn(count, size, size, generator=generator)
    return ((gaussian + gaussian.mT) / 2).flatten(1)


def trained(probe: Probe, size: int, rank: int, steps: int, seed: int, device: torch.device) -> list[float]:
    """The figures after so many steps of gradient descent from the seed's start."""
    model = Sensing(size, rank, Generator().manual_seed(seed), device)
    noise = Generator(device).manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE / size)
    for _ in range(steps):
        probe(model, model, noise)
        optimizer.step()
    return model.figures()


def summary(values: Sequence[float]) -> str:
    """Geometric mean and 95 % t-interval."""
    logs = torch.tensor(values, dtype=torch.float64).log()
    mean, half = logs.mean().item(), t.ppf(0.975, len(logs) - 1) * logs.std().item() / math.sqrt(len(logs))
    return " ".join(f"{math.exp(x):.3g}" for x in (mean, mean - half, mean + half))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("size", 30), ("rank", 2), ("steps", 8000), ("seeds", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    results = {name: [trained(probe, given.size, given.rank, given.steps, seed, torch.device(given.device))
                      for seed in range(given.seeds)] for name, probe in PROBES.items()}
    lines = [f"{given.seeds} seeds, size {given.size}, rank {given.rank}, {given.steps} steps; mean, 95 % interval"]
    for name, rows in results.items():
        figures = zip(COLUMNS, zip(*rows, strict=True), strict=True)
        lines.append(f"{name:24}" + "".join(f"  {column} {summary(values)}" for column, values in figures))
    last = [row[-1] for row in results["noise in pairs, k = 1"]]
    for name in list(results)[:-1]:
        ratios = [row[-1] / pair for row, pair in zip(results[name], last, strict=True)]
        lines.append(f"distance of {name} over that of pairs: {summary(ratios)}")
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    main()
