"""Arora, Ge, Neyshabur & Zhang 2018: compression bound by cushions, for the compressed network."""

from __future__ import annotations

import math
from collections.abc import Sequence

from genmeasure.bounds.assumptions import expressible, feed_forward
from genmeasure.bounds.terms import ZERO_ONE, check_delta, exponential, laid_out, log_sum, logarithm, percentile_margin
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


def log_layer_sum(found: Sequence[Cushion], reach: Sequence[int]) -> Estimate:
    """ln sum_i beta_i^2 c_i^2 ceil(kappa_i/s_i)^2 / (mu_i^2 mu_i->^2), standard error to first order."""
    logs, squares = [], []
    for cushion, patch in zip(found, reach, strict=True):
        if cushion.layer == 0 or cushion.interlayer.value == 0:
            return Estimate(math.inf)
        logs.append(math.log(cushion.spread.value) + 2 * (math.log(cushion.contraction * patch)
                    - math.log(cushion.layer) - math.log(cushion.interlayer.value)))
        squares.append((cushion.spread.stderr / cushion.spread.value) ** 2
                       + (2 * cushion.interlayer.stderr / cushion.interlayer.value) ** 2)
    total = log_sum(logs)
    spread = math.sqrt(sum(math.exp(2 * (log - total)) * q for log, q in zip(logs, squares, strict=True)))
    drawn = [e.n for c in found for e in (c.spread, c.interlayer) if e.stderr > 0]
    return Estimate(total, spread, min(drawn, default=1))


@bound("arora2018", index=("term",), unit=ZERO_ONE, needs=("classes",),
       kind={"theorem": "measure", "table": "reproduction"},
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
    log_factor = logarithm(largest_output(subject)) - 0.5 * math.log(n)
    if variant == "theorem":
        contraction = max(c.contraction for c in found)
        width = max(x.width for x in subject.layers)
        log_factor += 0.5 * math.log(2 * 72 * d**2 * math.log(n * d * width / delta)) + math.log(contraction)
        found = [Cushion(c.layer, c.interlayer, 1.0, c.spread) for c in found]
    inside = log_layer_sum(found, reach)
    log_paid = log_factor - math.log(gamma) + inside.value / 2 if gamma > 0 else math.inf
    value, relative = exponential(log_paid), inside.stderr / 2
    terms = {"complexity": Estimate(value, value * relative, inside.n) if relative and value < math.inf else value}
    if variant == "table":
        return laid_out(terms, log_total=log_paid, trivial=1.0, remarks=remarks, n=n)
    return laid_out({"margin-loss": error, **terms}, log_total=log_sum([logarithm(error), log_paid]), trivial=1.0,
                    remarks=remarks, n=n)


def largest_output(subject: Subject) -> float:
    """max over training examples of |f(x)|."""
    return predictions(subject).output_norm.max().item()
