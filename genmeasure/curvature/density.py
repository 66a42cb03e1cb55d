"""The density of the eigenvalues of a symmetric operator, by stochastic Lanczos quadrature.

A probe z of random signs has E zz' = I and |z|^2 = d, so z' f(H) z / d has expectation tr f(H) / d for every f. It is
the integral of f over the spectral measure of H at z, of which Lanczos started at z gives the Gauss quadrature: m steps
give m nodes, exact for polynomials up to degree 2m - 1 (Golub & Meurant 2010; Ubaru, Chen & Saad 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genmeasure.curvature.draws import generator, rademacher
from genmeasure.curvature.lanczos import lanczos
from genmeasure.curvature.memory import basis_place
from genmeasure.engine import progress
from genmeasure.errors import InputError
from genmeasure.estimate import MIN_DEGREES_OF_FREEDOM, Estimate

DEGREES = (1, 2, 3, 4)
"""Moments that are given; three steps are exact for them."""
LEAST_STEPS = 3
RESOLUTION = 100
"""The width that is chosen is at least the range of the eigenvalues over this."""
MARGIN = 4
"""Widths by which the grid goes beyond the eigenvalues: what the kernel leaves outside is below 1e-4."""
MOST_POINTS = 5000


def probe(purpose: str, seed: int, number: int, size: int) -> Tensor:
    """Signs [size], int8, of probe `number`: the same in any process and on any device."""
    return rademacher((size,), generator(purpose, seed, number))


def quadrature(product: Callable[[Tensor], Tensor], start: Tensor, steps: int, *,
               place: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Nodes and weights, each [steps], float64, of the spectral measure of an operator at `start` [d], made unit.

    The weights add up to one. Where the Krylov space is exhausted earlier, the rest has weight zero.
    """
    *_, last = lanczos(lambda q: product(q[0])[None], start[None], steps, place=place)
    nodes, vectors = last.cpu().ritz()
    found = torch.stack([nodes[0], vectors[0, 0, :] ** 2])
    return tuple(torch.nn.functional.pad(found, (0, steps - found.shape[1])))


@dataclass(frozen=True)
class Spectrum:
    """The quadratures of every probe: nodes and weights [probes, steps]."""

    nodes: Tensor
    weights: Tensor

    def mean(self, function: Callable[[Tensor], Tensor]) -> Estimate:
        """tr f(H) / d, with the standard error over probes."""
        return Estimate.from_draws((function(self.nodes) * self.weights).sum(1))

    def moment(self, degree: int) -> Estimate:
        """tr(H^degree) / d."""
        return self.mean(lambda x: x**degree)

    def fraction_below(self, value: float) -> Estimate:
        """The fraction of eigenvalues below `value`: a step is no polynomial, so nodes near it lend it a bias."""
        return self.mean(lambda x: (x < value).double())

    def density(self, at: float, width: float) -> Estimate:
        """The density at `at`, smoothed with a Gaussian kernel of standard deviation `width`, whose integral is one."""
        height = 1 / (width * math.sqrt(2 * math.pi))
        return self.mean(lambda x: height * torch.exp(-0.5 * ((x - at) / width) ** 2))

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest node that has a weight."""
        there = self.nodes[self.weights > 0]
        return there.min().item(), there.max().item()

    def grid(self, width: float | None = None) -> tuple[float, list[float]]:
        """A width and the multiples of it that cover the eigenvalues with a margin.

        The width is `width`, or else the first of 1, 2, 5, 10, … times a power of ten that is at least the range over
        `RESOLUTION`, so that another seed or a similar checkpoint has the same points. Raises `InputError` for a width
        that leads to more than `MOST_POINTS` points.
        """
        low, high = self.range
        least = max(high - low, 1e-6 * max(abs(low), abs(high))) / RESOLUTION
        width = width or round_up(least)
        points = (high - low) / width + 2 * MARGIN + 2
        if points > MOST_POINTS:
            raise InputError(f"width={width:g} came for eigenvalues between {low:g} and {high:g}, which makes "
                             f"{points:.0f} points; take width={round_up((high - low) / MOST_POINTS * 1.01):g} or more")
        return width, [i * width for i in range(math.floor(low / width) - MARGIN, math.ceil(high / width) + MARGIN + 1)]


def round_up(number: float) -> float:
    """The first of 1, 2, 5, 10 times a power of ten that is at least `number`; 1 for zero."""
    if number == 0:
        return 1.0
    power = math.floor(math.log10(number))
    digits = next(digit for digit in (1, 2, 5, 10) if digit * 10.0**power >= number * (1 - 1e-12))
    return float(f"{digits}e{power}")


def spectrum(product: Callable[[Tensor], Tensor], size: int, *, probes: int, steps: int, rtol: float, max_probes: int,
             like: Tensor, seed: int, purpose: str = "density") -> Spectrum:
    """Stochastic Lanczos quadrature of a symmetric operator on [size] vectors, each of `steps` products.

    `probes` probes, or with rtol > 0 as many more as the relative standard errors of the first two moments need to be
    at most `rtol`, judged from 21 probes on and at most `max_probes`. Vectors have the dtype of `like`, coefficients
    are float64. purpose: keeps the draws of different operators independent under one seed.

    The basis takes up to `steps` vectors (`basis_place`). Raises `InputError` where it fits nowhere, for fewer than
    two probes, which have no standard error, and for fewer than three steps.
    """
    if probes < 2:
        raise InputError(f"probes={probes} came, which leaves the standard error unknown; give probes=2 or more")
    if steps < LEAST_STEPS:
        raise InputError(f"steps={steps} came, too few for the fourth moment; give steps={LEAST_STEPS} or more")
    place = basis_place(min(steps, size), size, like, parameter="steps")
    drawn: list[tuple[Tensor, Tensor]] = []
    for number in progress(range(max(probes, max_probes) if rtol > 0 else probes), "probes"):
        start = probe(purpose, seed, number, size).to(like)
        drawn.append(quadrature(product, start, min(steps, size), place=place))
        found = Spectrum(*(torch.stack(part) for part in zip(*drawn, strict=True)))
        if len(drawn) >= probes and rtol > 0 and _precise(found, rtol):
            break
    return found


def _precise(found: Spectrum, rtol: float) -> bool:
    moments = [found.moment(degree) for degree in (1, 2)]
    return len(found.nodes) > MIN_DEGREES_OF_FREEDOM and all(m.stderr <= rtol * abs(m.value) for m in moments)
