"""How heavy the tails of the layers' spectra are: measures that need neither data nor the start."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genmeasure.estimate import Estimate
from genmeasure.layers import Layer, matrix
from genmeasure.registry import measure
from genmeasure.subject import Subject

LEAST = 10
"""Eigenvalues that a fit needs, and that its tail keeps."""


def eigenvalues(layer: Layer, weight: Tensor) -> Tensor:
    """Squared singular values of the weight, ascending and above 0, in float64; of a convolution those of the matrices
    [out, in] at all places of its kernel, pooled."""
    w = weight.detach().double().cpu()
    slices = w.flatten(2).permute(2, 0, 1) if layer.convolution else matrix(w)[None]
    found = torch.linalg.svdvals(slices).square().flatten().sort().values
    return found[found > 0]


def power_law(values: Tensor, least: int = LEAST) -> tuple[float, float, int]:
    """alpha, x_min and the number of values in the tail of a density x^-alpha for x >= x_min, values ascending.

    alpha is the maximum-likelihood estimate 1 + n / sum ln(x / x_min); x_min is the value at which the largest
    difference between the fitted and the empirical distribution function is smallest (Clauset, Shalizi & Newman 2009,
    arXiv:0706.1062), among those that leave at least `least` values.
    """
    logs, best = values.log(), (math.inf, math.nan, math.nan, 0)
    for first in range(len(values) - least + 1):
        tail = logs[first:] - logs[first]
        n, total = len(tail), tail.sum().item()
        if total <= 0:
            continue
        slope = n / total
        fitted, places = 1 - torch.exp(-slope * tail), torch.arange(n + 1, dtype=torch.float64) / n
        distance = torch.maximum(places[1:] - fitted, fitted - places[:-1]).max().item()
        if distance < best[0]:
            best = (distance, 1 + slope, values[first].item(), n)
    return best[1:]


@measure("spectral-alpha", index=("layer", "term"), unit="",
         source="Martin, Peng & Mahoney 2021, doi:10.1038/s41467-021-24025-8 (WeightWatcher); power law: "
                "arXiv:0706.1062")
def spectral_alpha(subject: Subject) -> dict[tuple[str, str], Estimate]:
    """Exponent of the power law in the tail of every layer's spectrum, log spectral norm and stable rank; no data.

    Of the eigenvalues of W'W, with largest one lambda_max: `alpha` of a density x^-alpha above a fitted x_min (missing
    for layers with fewer than ten eigenvalues or an infinite exponent), `log10-spectral-norm` = log10 lambda_max,
    `weighted-alpha` = alpha log10 lambda_max, `stable-rank` = sum of the eigenvalues / lambda_max. Kernels of
    convolutions are taken apart by place. Totals are means over the layers that have the term. Layers of zeros have
    none.
    """
    result: dict[tuple[str, str], Estimate] = {}
    for layer in subject.layers:
        values = eigenvalues(layer, subject.weight(layer))
        if not len(values):
            continue
        log_norm = math.log10(values[-1].item())
        result[layer.name, "log10-spectral-norm"] = Estimate(log_norm)
        result[layer.name, "stable-rank"] = Estimate((values.sum() / values[-1]).item())
        alpha = power_law(values)[0]
        if math.isfinite(alpha):
            result[layer.name, "alpha"] = Estimate(alpha)
            result[layer.name, "weighted-alpha"] = Estimate(alpha * log_norm)
    for term in dict.fromkeys(term for _, term in result):
        found = [e.value for (_, t), e in result.items() if t == term]
        result["total", term] = Estimate(math.fsum(found) / len(found))
    return result
