"""Li & Zhang 2021: PAC-Bayes bound from layer-wise distances."""

from __future__ import annotations

import math

from genmeasure.bounds.assumptions import bounded_loss, expressible, feed_forward
from genmeasure.bounds.layer_norms import layer_norms
from genmeasure.bounds.terms import exponential, laid_out, log_sum, logarithm, loss_bound
from genmeasure.errors import InputError, unknown
from genmeasure.estimate import Estimate
from genmeasure.predictions import largest_input_norm, predictions
from genmeasure.registry import bound
from genmeasure.subject import Subject


def log_complexity(source_norms: list[float], distances: list[float]) -> float:
    """ln of ( sum_i prod_j (B_j + D_j) / (B_i + D_i) )^2 sum_i D_i^2; -inf where nothing moved."""
    if not any(distances):
        return -math.inf
    reach = [math.log(b + d) if b + d > 0 else -math.inf for b, d in zip(source_norms, distances, strict=True)]
    if any(r == -math.inf for r in reach):
        return -math.inf  # a layer that stays at zero: the network is constant
    return 2 * log_sum(sum(reach) - r for r in reach) + math.log(sum(d**2 for d in distances))


@bound("li2021", index=("term",), unit="loss", needs={"theorem": ("input-norm",), "table": ()},
       kind={"theorem": "measure", "table": "reproduction"},
       source="arXiv:2111.04578, constants reconstructed (bounds.md 3.5)", defined=expressible, assumes=(
           feed_forward, bounded_loss))
def li2021(subject: Subject, *, variant: str = "table", epsilon: float = 0.1, delta: float = 0.05,
           loss_upper: str | float = "max-sample") -> dict[str, Estimate]:
    """Loss from the layers' distances D_i from the start and the start's spectral norms B_i.

    variant `table`: sqrt( (sum_i prod_j (B_j + D_j) / (B_i + D_i))^2 sum_i D_i^2 / (epsilon^2 n) ). `theorem`: training
    loss + epsilon + C sqrt( (36/epsilon^2 C_1^2 H ln(4 L H C_1) (...) + 3 ln(n/delta) + 8) / n ) with the largest input
    norm C_1, the largest width H, depth L and the loss bound C; a measure, because the published constants could not be
    confirmed. Norms are of reshaped kernels in the table and of linear maps in the theorem, BatchNorm folded.
    """
    n = subject.train.size
    if not 0 < delta < 1 or epsilon <= 0:
        raise InputError(f"delta {delta} and epsilon {epsilon} came; delta is a probability and epsilon is positive")
    if variant == "table":
        norms, distances = layer_norms(subject, "start", "spectral"), layer_norms(subject, "displacement", "frobenius")
        log_total = 0.5 * (log_complexity(norms, distances) - math.log(n)) - math.log(epsilon)
        return laid_out({"complexity": exponential(log_total)}, log_total=log_total, n=n)
    if variant != "theorem":
        raise unknown("variant of li2021", variant, ["theorem", "table"])
    norms, unrolled = layer_norms(subject, "start", "operator"), layer_norms(subject, "displacement", "unrolled")
    found, c = predictions(subject), loss_bound(subject, loss_upper)
    reach, width = largest_input_norm(subject), max(x.width for x in subject.layers)
    log_inside = (math.log(36 / epsilon**2 * reach**2 * width * math.log(4 * len(norms) * width * reach))
                  + log_complexity(norms, unrolled))
    log_paid = 0.5 * (log_sum([log_inside, math.log(3 * math.log(n / delta) + 8)]) - math.log(n)) + logarithm(c)
    loss = found.loss.mean().item()
    terms = {"training-loss": loss, "epsilon": epsilon, "complexity": exponential(log_paid)}
    return laid_out(terms, log_total=log_sum([logarithm(loss), math.log(epsilon), log_paid]), trivial=c,
                    remarks={"loss-bound": c}, n=n)
