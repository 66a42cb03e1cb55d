"""Ju, Li & Zhang 2022: the Hessian-based bound for the consistent loss under label noise."""

from __future__ import annotations

import torch
from torch import Tensor

from genmeasure.bounds.assumptions import bounded_loss, smooth
from genmeasure.bounds.ju2022_trace import CANDIDATES, PROBES, STEPS, contribution, positive_traces
from genmeasure.bounds.terms import laid_out, loss_bound
from genmeasure.data.label_noise import inverse_confusion
from genmeasure.errors import InputError
from genmeasure.estimate import Estimate
from genmeasure.norms import frobenius
from genmeasure.registry import bound
from genmeasure.subject import Subject


def inverse_row_sum(confusion: Tensor) -> float:
    """|(F^-1)'|_(1,inf), the largest absolute row sum of the inverse; F [k, k] with the true class in rows."""
    return inverse_confusion(confusion).abs().sum(1).max().item()


def symmetric_confusion(rate: float, classes: int) -> Tensor:
    """F [k, k] where a label is wrong with probability `rate`, and then each of the others equally often."""
    off = rate / (classes - 1)
    return off + (1 - rate - off) * torch.eye(classes, dtype=torch.float64)


def confusion_of(subject: Subject, rate: float | None) -> Tensor:
    """Symmetric of this rate, or if None the realised one of data that bring the true labels, else no noise."""
    if rate is not None:
        if not 0 <= rate < 1:
            raise InputError(f"rate {rate} came; it is the share of wrong labels, from 0 to below 1")
        return symmetric_confusion(rate, subject.classes)
    pairs = [(b.clean, b.targets) for b in subject.train if b.clean is not None]
    counts = torch.eye(subject.classes, dtype=torch.float64)
    if pairs:
        clean, given = (torch.cat(part) for part in zip(*pairs, strict=True))
        found = torch.bincount(clean * subject.classes + given, minlength=subject.classes**2).reshape(counts.shape)
        counts = torch.where(found.sum(1, keepdim=True) > 0, found.double(), counts)
    return counts / counts.sum(1, keepdim=True)


@bound("ju2022-consistent", index=("term",), kind="measure", unit="loss", needs=("classes",),
       assumes=(smooth, bounded_loss), source="arXiv:2206.02659, Theorem 2.2 (as its slides show it); bounds.md 3.7")
def ju2022_consistent(subject: Subject, *, rate: float | None = None, loss_upper: str | float = "max-sample",
                      candidates: int = CANDIDATES, probes: int = PROBES, steps: int = STEPS,
                      seed: int = 0) -> dict[str, Estimate]:
    """sqrt(C/n) sum_i sqrt(|(F^-1)'|_(1,inf) max Tr[H_ii+] |v_i|^2) for labels that are noisy in a known way.

    F is the confusion matrix, P(given label | true label), symmetric of the share `rate` of wrong labels, or if None
    the realised one where the data bring true labels and the identity where not. `factor` is |(F^-1)'|_(1,inf), the
    largest absolute row sum of the inverse, 1 without noise. The rest as in `ju2022-trace`; a measure.
    """
    c, n = loss_bound(subject, loss_upper), subject.train.size
    factor = inverse_row_sum(confusion_of(subject, rate))
    found = positive_traces(subject, candidates=candidates, probes=probes, steps=steps, seed=seed)
    terms = {x.name: contribution(c, found[x.name], frobenius(subject.displacement(x)), n, factor)
             for x in subject.layers}
    return laid_out(terms, trivial=c, remarks={"loss-bound": c, "factor": factor}, n=n)
