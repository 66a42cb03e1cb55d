"""Matrix sensing: does noise in pairs find the hidden matrix where one-sided noise does not?

    python analysis/matrix_sensing.py [--size 20] [--rank 2] [--steps 4000] [--seeds 10] [--device cpu]

Setting of Zhang, Li, Ju 2024, arXiv:2306.08553, smaller by default: X = U* U*' with U* ~ N(0, 1)^{size x rank}, known
through m = 5 size rank products <A_i, X> with symmetric Gaussian A_i; U is size x size, so that many U fit them all.
Every step uses all of them. Prints geometric means over the seeds with 95 % t-intervals of the logarithms.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence

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
    """f(U) = 1/(4m) sum_i (<A_i, U U' - X>)² for several seeds at once, added up, each with its own X, A_i and U."""

    def __init__(self, size: int, rank: int, seeds: Sequence[int], device: torch.device):
        super().__init__()
        generators = [Generator().manual_seed(seed) for seed in seeds]

        def drawn(draw: Callable[[Generator], Tensor]) -> Tensor:
            return torch.stack([draw(generator) for generator in generators]).to(device)
        hidden = drawn(lambda g: torch.randn(size, rank, generator=g))
        self.hidden = hidden @ hidden.mT
        self.training_set, self.validation_set = (
            drawn(lambda g: symmetric(5 * size * rank, size, g)) for _ in range(2))
        self.factor = nn.Parameter(drawn(lambda g: torch.randn(size, size, generator=g)))

    def forward(self) -> Tensor:
        return self.misfit(self.training_set).square().mean(1).sum() / 4

    def misfit(self, measurements: Tensor) -> Tensor:
        """[seeds, m]"""
        return products(measurements, self.factor @ self.factor.mT - self.hidden)

    @torch.no_grad()
    def figures(self) -> list[list[float]]:
        """For every seed training and validation loss and distance, each relative to U = 0."""
        losses = [self.misfit(a).square().mean(1) / products(a, self.hidden).square().mean(1)
                  for a in (self.training_set, self.validation_set)]
        difference = self.factor @ self.factor.mT - self.hidden
        return torch.stack([*losses, difference.norm(dim=(1, 2)) / self.hidden.norm(dim=(1, 2))], 1).tolist()


def products(measurements: Tensor, matrices: Tensor) -> Tensor:
    """[seeds, m, size²] and [seeds, size, size] -> [seeds, m]."""
    return torch.einsum("smi,si->sm", measurements, matrices.flatten(1))


def symmetric(count: int, size: int, generator: Generator) -> Tensor:
    """[count, size²]: (G + G')/2, G with independent N(0, 1) entries."""
    gaussian = torch.randn(count, size, size, generator=generator)
    return ((gaussian + gaussian.mT) / 2).flatten(1)


def trained(probe: Probe, size: int, rank: int, steps: int, seeds: Sequence[int],
            device: torch.device) -> list[list[float]]:
    """The figures of every seed after so many steps of gradient descent."""
    model, noise = Sensing(size, rank, seeds, device), Generator(device).manual_seed(seeds[0])
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
    for name, default in (("size", 20), ("rank", 2), ("steps", 4000), ("seeds", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    results = {name: trained(probe, given.size, given.rank, given.steps, range(given.seeds), torch.device(given.device))
               for name, probe in PROBES.items()}
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
