"""What fewer bits do to an estimate: gap, noise curve and `route=forward` of hessian-trace from the same draws.

Every precision draws the same examples and the same noise, so that its difference to float64 is known far better than
the estimate itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from harness import Row, Setting, main, synchronize
from networks import Case, piecewise_linear, smooth
from torch import Tensor

import genmeasure as gm
from genmeasure.curvature.forward import Differences
from genmeasure.curvature.noise import Sample, Spreads, group_draws, survey
from genmeasure.curvature.perturbation import Perturbed
from genmeasure.curvature.piecewise import structure
from genmeasure.engine import float32_products
from genmeasure.estimate import Estimate
from genmeasure.measures.hessian_trace import FORWARD_SIGMA
from genmeasure.precision import PRECISIONS
from genmeasure.predictions import predictions
from genmeasure.subject import Subject

EXACT = "float64"
SIGMAS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
WIDE = 0.1
"""A `forward_sigma` that bfloat16 sees."""
SEED = 0


def precisions(device: torch.device) -> list[str]:
    """Those that the device has, the exact one first."""
    return [EXACT, *(name for name, p in PRECISIONS.items() if name != EXACT
                     and (p.products == "ieee" or device.type == "cuda"))]


def rounded(subject: Subject, device: torch.device) -> dict[str, Subject]:
    """The subject in every precision."""
    return {name: gm.subject(subject.model, subject.start, subject.train, name=subject.name, head=subject.head,
                             device=str(device), dtype=name) for name in precisions(device)}


def draws_of_curve(subject: Subject, sample: Sample, groups: int) -> Tensor:
    """Differences of the loss under noise, [groups, sigmas]."""
    risk = subject.risk
    sample = replace(sample, losses=survey(risk).losses)
    return group_draws(risk, sample, SIGMAS, range(groups), layers=risk.layers, spreads=Spreads().of(risk),
                       numbers=(SEED, 0), model=Perturbed(risk, risk.layers))


def draws_of_traces(subject: Subject, sample: Sample, groups: int) -> Tensor:
    """Draws of Tr H_ii in every layer, added up over layers, [groups, 2], with `FORWARD_SIGMA` and `WIDE`."""
    linear, columns = structure(subject.risk).linear, []
    for sigma in (FORWARD_SIGMA, WIDE):
        layers = [Differences(subject.risk, sample, layer, sigma, SEED, linear) for layer in subject.layers]
        for layer in layers:
            layer.extend(groups)
        columns.append(sum(layer.found.values[:, 0] for layer in layers))
    return torch.stack(columns, 1)


def losses(subject: Subject, sample: Sample, groups: int) -> Tensor:
    """Of every example, [examples, 1]."""
    return predictions(subject).loss[:, None]


def timed(measure: Callable, subject: Subject, sample: Sample, groups: int) -> tuple[Tensor, float, float]:
    """Draws, seconds and passes."""
    device, before = subject.risk.device, subject.risk.passes
    synchronize(device)
    began = time.perf_counter()
    with float32_products(subject.precision.products):
        found = measure(subject, sample, groups)
    synchronize(device)
    return found, time.perf_counter() - began, subject.risk.passes - before


def compared(case: Case, measure: Callable, what: list[str], groups: int, setting: Setting) -> Iterator[Row]:
    """A row for every column of the draws and every precision but the exact one; each is warmed up before."""
    found = {}
    for some, draws in ((case.few, 2), (case.subject, groups)):
        subjects = rounded(some, setting.device)
        sample = survey(subjects[EXACT].risk)
        found = {name: timed(measure, subject, sample, draws) for name, subject in subjects.items()}
    exact, exact_seconds, exact_passes = found.pop(EXACT)
    for name, (draws, seconds, passes) in found.items():
        for column, label in enumerate(what):
            estimate, off = (Estimate.from_draws(x[:, column]) for x in (exact, draws - exact))
            size = abs(estimate.value)
            yield Row(f"{label}, {case.label}, float64 / {name}", seconds, exact_seconds,
                      f"{name} is off by {off.value / size:+.2%} ± {off.stderr / size:.2%} of {estimate.value:.4g}, "
                      f"whose standard error is {estimate.stderr / size:.2%} ({estimate.n} draws, the same in both)",
                      passes, exact_passes)


NETWORKS = {"relu": piecewise_linear, "gelu": lambda *size: smooth(*size)[0],
            "transformer": lambda *size: smooth(*size)[1]}
QUANTITIES = {"loss": (losses, ["loss"], 0, 0),
              "curve": (draws_of_curve, [f"I(sigma), sigma {sigma}" for sigma in SIGMAS], 24, 4),
              "trace": (draws_of_traces, [f"trace, route=forward, forward_sigma={sigma}"
                                          for sigma in (FORWARD_SIGMA, WIDE)], 4, 2)}
"""What is drawn, its columns, and how many draws of it a full and a quick run make."""


def one(setting: Setting, quantity: str, network: str) -> Iterator[Row]:
    measure, columns, full, quick = QUANTITIES[quantity]
    case = NETWORKS[network](setting.examples(256, 64), setting.device.type)
    yield from compared(case, measure, columns, setting.of(full, quick), setting)


COMPARISONS = {f"{quantity}-of-{network}": partial(one, quantity=quantity, network=network)
               for network in NETWORKS for quantity in QUANTITIES}


if __name__ == "__main__":
    raise SystemExit(main("precision", __doc__.splitlines()[0], COMPARISONS))
