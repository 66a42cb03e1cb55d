"""Arora, Ge, Neyshabur & Zhang 2018: compression bound by cushions, for the compressed network."""

from __future__ import annotations

import math
from collections.abc import Sequence

from genmeasure.bounds.assumptions import expressible, feed_forward
from genmeasure.bounds.terms import check_delta, laid_out, percentile_margin
from genmeasure.errors import unknown
from genmeasure.estimate import Estimate
from genmeasure.layers import Layer
from genmeasure.measures.cushion import EXAMPLES, PROBES, Cushion, cushions, plain_network
from genmeasure.predictions import predictions
from genmeasure.registry import bound
from genmeasure.spectral import taps_on_a_pixel
from genmeasure.subject import Subject


def defined(subject: Subject) -> str | None:
    return expressible(subject) or plain_network(subject)


def patches(layer: Layer) -> int:
    """The most patches that hold a pixel, its largest axis: ceil(kernel / stride) without dilation; 1 for a Linear."""
    if not layer.convolution:
        return 1
    module = layer.module
    return max(map(taps_on_a_pixel, module.kernel_size, module.stride, module.dilation))


def layer_sum(found: Sequence[Cushion], reach: Sequence[int]) -> Estimate:
    """sum_i beta_i^2 c_i^2 ceil(kappa_i/s_i)^2 / (mu_i^2 mu_i->^2), standard error to first order."""
    total = squares = 0.0
    for cushion, patch in zip(found, reach, strict=True):
        if cushion.layer == 0 or cushion.interlayer.value == 0:
            return Estimate(math.inf)
        part = (cushion.spread.value * cushion.contraction**2 * patch**2
                / (cushion.layer**2 * cushion.interlayer.value**2))
        total += part
        relative = [cushion.spread.stderr / cushion.spread.value,
                    2 * cushion.interlayer.stderr / cushion.interlayer.value]
        squares += part**2 * sum(r**2 for r in relative)
    drawn = [e.n for c in found for e in (c.spread, c.interlayer) if e.stderr > 0]
    return Estimate(total, math.sqrt(squares), min(drawn, default=1))


@bound("arora2018", index=("term",), needs=("classes",), kind={"theorem": "measure", "table": "reproduction"},
       source="arXiv:1802.05296, Theorems 4.1 and 5.1, Lemma 3; table: Figure 4 there and Ju, Li & Zhang 2022 "
              "(reconstructed)", defined=defined, assumes=(feed_forward,))
def arora2018(subject: Subject, *, variant: str = "table", percentile: float = 0.1, delta: float = 0.05,
              examples: int = EXAMPLES, probes: int = PROBES, seed: int = 0) -> dict[str, Estimate]:
    """Effective parameters of the network after compression, from how it damps the noise of its layers.

    variant `table`: max |f(x)| / margin sqrt(sum_i beta_i^2 c_i^2 ceil(k_i/s_i)^2 / (mu_i^2 mu_i->^2) / n), with the
    layer and interlayer cushions mu, the contraction c and the spread beta^2 as `cushion` finds them over the first
    `examples` training examples, kernels k_i and strides s_i (without beta and ceil for fully connected layers).
    `theorem`: margin loss plus sqrt(q/n), q the number of parameters of Lemma 3 with its constant and c the largest
    contraction, without the logarithm of the levels. Both speak of the compressed network, not of this one, and the
    theorem hides logarithms: neither certifies. Infinite where the margin at `percentile` is not positive.
    """
    check_delta(delta)
    if variant not in ("table", "theorem"):
        raise unknown("variant of arora2018", variant, ["table", "theorem"])
    gamma, error = percentile_margin(subject, percentile)
    remarks, n, d = {"margin": gamma, "margin-error": error}, subject.train.size, len(subject.layers)
    found = list(cushions(subject, examples=examples, probes=probes, seed=seed).values())
    reach = [patches(x) for x in subject.layers]
    total, largest = layer_sum(found, reach), largest_output(subject)
    factor = (largest / gamma) ** 2 / n if gamma > 0 else math.inf
    if variant == "theorem":
        contraction = max(c.contraction for c in found)
        logarithm = math.log(n * d * max(x.width for x in subject.layers) / delta)
        factor *= 2 * 72 * contraction**2 * d**2 * logarithm
        total = layer_sum([Cushion(c.layer, c.interlayer, 1.0, c.spread) for c in found], reach)
    value = math.sqrt(factor * total.value)
    spread = value * total.stderr / (2 * total.value) if math.isfinite(value) else 0.0
    terms = {"complexity": Estimate(value, spread, total.n if spread else n)}
    return laid_out(({"margin-loss": error} if variant == "theorem" else {}) | terms, trivial=1.0, remarks=remarks, n=n)


def largest_output(subject: Subject) -> float:
    """max over training examples of |f(x)|."""
    return predictions(subject).output_norm.max().item()
