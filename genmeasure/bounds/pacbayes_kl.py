"""PAC-Bayes-kl certificate of the fine-tuned weights under Gaussian noise, with the prior at the start."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genmeasure.bounds.assumptions import distinct_examples, independent_start
from genmeasure.bounds.inversions import drawn_upper, dziugaite_budget, kl_inverse, pac_bayes_budget
from genmeasure.bounds.moved import Moved, choice_nats, errors, first_batches, moved
from genmeasure.bounds.terms import ZERO_ONE, check_delta, laid_out
from genmeasure.curvature.draws import generator
from genmeasure.curvature.trace import block_traces
from genmeasure.data.batches import Batch
from genmeasure.errors import InputError, second_derivative, unknown
from genmeasure.estimate import Estimate, Estimates
from genmeasure.measures.hessian_trace import LAYER_RTOL, MAX_PASSES, RTOL, traces
from genmeasure.registry import bound
from genmeasure.risk import FORWARD
from genmeasure.subject import Subject

GRID, LARGEST = 64, 32.0
"""Standard deviations that a tensor may have: LARGEST 2^(-k/2), k = 0 … GRID - 1."""
COARSE, FINE = range(-24, 25, 4), range(-3, 4)
"""Steps on the grid by which all tensors are shifted together, first and then about the best."""
ISOTROPIC_SCALE, ISOTROPIC_PRECISION = 0.1, 100.0
"""c and b of Dziugaite & Roy 2017: variances c exp(-j/b), j = 1, 2, …"""
MONTE_CARLO_SHARE = 0.2
"""The part of delta that pays for drawing the posterior's training error."""
NOISE_STEP = 1e-3
"""Of a tensor's root mean square: how far the loss is followed for the curvature of tensors that are no layer."""
LEAST_EXAMPLES = 8
"""From which on the PAC-Bayes-kl bound holds."""


@dataclass(frozen=True)
class Posterior:
    """Gaussian noise about the fine-tuned weights and what was paid for choosing it.

    sigmas: a standard deviation for each tensor that moved. kl: sum |v_i|^2 / (2 sigma_i^2). budget: (n, delta) -> what
    kl(training error || true error) is at most. choice: nats for which tensors moved and which grid points were taken.
    """

    sigmas: list[float]
    kl: float
    choice: float
    budget: Callable[[int, float], float]


def grid_sigma(index: int) -> float:
    return LARGEST * 2.0 ** (-index / 2)


def grid_index(sigma: float) -> int:
    """The grid point nearest to a standard deviation."""
    return min(max(round(-2 * math.log2(sigma / LARGEST)), 0), GRID - 1)


def divergence(squares: list[float], sigmas: list[float]) -> float:
    """KL of N(w, diag sigma^2) from N(w(start), diag sigma^2): sum |v_i|^2 / (2 sigma_i^2)."""
    return math.fsum(q / (2 * s * s) for q, s in zip(squares, sigmas, strict=True))


def layerwise(squares: list[float], tensors: int, indices: list[int]) -> Posterior:
    """A grid point for each tensor, paid for by a code over the grid."""
    sigmas = [grid_sigma(i) for i in indices]
    choice, kl = choice_nats(tensors, indices, GRID), divergence(squares, sigmas)
    return Posterior(sigmas, kl, choice, lambda n, delta: pac_bayes_budget(kl + choice, n, delta))


def isotropic(squares: list[float], tensors: int, indices: list[int]) -> Posterior:
    """One variance c exp(-j/b), j paid for as Dziugaite & Roy do, and which tensors moved by a code."""
    wanted = grid_sigma(indices[0] if indices else GRID // 2) ** 2
    step = max(1, round(-ISOTROPIC_PRECISION * math.log(wanted / ISOTROPIC_SCALE)))
    sigma = math.sqrt(ISOTROPIC_SCALE * math.exp(-step / ISOTROPIC_PRECISION))
    sigmas = [sigma] * len(squares)
    which, kl = choice_nats(tensors, [0] * len(squares), 1), divergence(squares, sigmas)
    paid = which + 2 * math.log(step) + math.log(math.pi**2 / 6)
    return Posterior(sigmas, kl, paid, lambda n, delta: dziugaite_budget(kl + which, n, delta, step))


def noisy(subject: Subject, tensors: list[Moved], sigmas: list[float], noise: torch.Generator) -> dict[str, Tensor]:
    """Entries of the state drawn from the posterior."""
    state = subject.state
    return {m.path: m.value(m.end + s * torch.randn(m.end.shape, generator=noise, dtype=torch.float32),
                            state[m.path]) for m, s in zip(tensors, sigmas, strict=True)}


def hessian_sigmas(subject: Subject, tensors: list[Moved], searched: list[Batch], max_passes: int,
                   seed: int) -> list[float]:
    """sigma_i^2 = |v_i| / sqrt(n Tr H_i+): what makes the second-order bound least, for a loss bound of 1.

    Tr H_i is measured for layers as by `hessian-trace`; for other tensors it is the second difference of the loss along
    noise of a small share of the tensor's size.
    """
    known, sigmas = _layer_traces(subject, {m.path for m in tensors}, max_passes, seed), []
    for number, m in enumerate(tensors):
        if m.path in known:
            trace = known[m.path]
        else:
            trace = _noise_trace(subject, m, searched, generator("posterior curvature", seed, number))
        curvature = math.sqrt(subject.train.size * max(trace, 1e-12))
        sigmas.append(math.sqrt(m.move.norm().item() / curvature))
    return sigmas


def _layer_traces(subject: Subject, paths: set[str], max_passes: int, seed: int) -> dict[str, float]:
    """Tr H_ii of the layers at these paths; the traces of `hessian-trace` where all layers are among them."""
    layers = [x for x in subject.layers if x.parameter in paths]
    setting = {"route": "auto", "rtol": RTOL, "layer_rtol": LAYER_RTOL, "atol": 0.0, "max_passes": max_passes,
               "seed": seed}
    if not layers:
        return {}
    if len(layers) == len(subject.layers):
        found = traces(subject, **setting)
    else:
        with second_derivative():
            found = block_traces(subject.risk.restricted(layers), **setting)
    unit_vectors = torch.eye(len(layers), dtype=torch.float64)
    return {x.parameter: found.estimate(e).value for x, e in zip(layers, unit_vectors, strict=True)}


def _noise_trace(subject: Subject, m: Moved, searched: list[Batch], noise: torch.Generator) -> float:
    """Tr of the Hessian with respect to one tensor: E [L(w + u) + L(w - u) - 2 L(w)] / s^2, u ~ N(0, s^2)."""
    risk, like = subject.risk, subject.state[m.path]
    step = NOISE_STEP * max(m.end.square().mean().sqrt().item(), m.move.square().mean().sqrt().item())
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in map(risk.place, searched):
            u = step * torch.randn(m.end.shape, generator=noise, dtype=torch.float64)
            values = [risk.losses_of(risk.outputs_of_state({m.path: m.value(m.end + a * u, like)}, batch).double(),
                                     batch).sum().item() for a in (1, 0, -1)]
            risk.spend(3 * FORWARD, len(batch))
            total += (values[0] - 2 * values[1] + values[2]) / step**2
            count += len(batch)
    return total / count


def found_posterior(subject: Subject, variant: str, *, examples: int, max_passes: int, seed: int) -> Posterior:
    """The posterior on the grid whose bound is least, by the errors drawn on the first examples; once per subject."""
    def compute() -> Posterior:
        tensors, count = moved(subject)
        squares = [m.move.square().sum().item() for m in tensors]
        searched = first_batches(subject, examples)
        equal = [GRID // 2] * len(tensors)
        bases = [equal]
        if variant == "layerwise" and tensors:
            bases.append([grid_index(s) for s in hessian_sigmas(subject, tensors, searched, max_passes, seed)])

        def shifted(base: list[int], by: int) -> Posterior:
            indices = [min(max(i + by, 0), GRID - 1) for i in base]
            return (layerwise if variant == "layerwise" else isotropic)(squares, count, indices)

        def value(base: list[int], by: int) -> float:
            found, noise = shifted(base, by), generator("posterior search", seed)
            wrong = torch.cat([errors(subject, noisy(subject, tensors, found.sigmas, noise), b) for b in searched])
            return kl_inverse(wrong.mean().item(), found.budget(subject.train.size, 0.05))
        best = (math.inf, equal, 0)
        for base in bases if tensors else ():
            coarse = min((value(base, by), by) for by in COARSE)
            fine = min((value(base, coarse[1] + by), coarse[1] + by) for by in FINE)
            best = min(best, (fine[0], base, fine[1]))
        return shifted(*best[1:])
    return subject.remember(f"posterior {variant} {seed} {examples} {max_passes}", compute)


@dataclass(frozen=True)
class Drawn:
    """The posterior's training error: its mean and standard error, from so many draws, each of at most this weight."""

    error: Estimate
    largest_weight: float


def drawn_error(subject: Subject, posterior: Posterior, *, draws: int, draw_size: int, seed: int) -> Drawn:
    """Fresh weights for every `draw_size` examples, over as many passes as `draws` draws take."""
    tensors, _ = moved(subject)
    parts = sum(math.ceil(length / draw_size) for length in subject.train.lengths)
    passes = math.ceil(draws / parts)

    begins = torch.tensor([0, *subject.train.lengths]).cumsum(0)
    piece_of = torch.cat([torch.arange(length) // draw_size for length in subject.train.lengths])  # within its batch
    _, group = torch.stack([torch.searchsorted(begins, torch.arange(subject.train.size), right=True),
                            piece_of]).unique(dim=1, return_inverse=True)

    def one(batch: Batch, number: int) -> Tensor:
        found = []
        for piece in piece_of[batch.rows].unique().tolist():
            noise = generator("posterior", seed, number, batch.index, piece)
            mine = batch.select((piece_of[batch.rows] == piece).nonzero().squeeze(1))
            found.append(errors(subject, noisy(subject, tensors, posterior.sigmas, noise), mine))
        return torch.cat(found).double()
    total = squares = 0.0
    for number in range(passes):
        wrong = subject.engine.examples(lambda b, i=number: one(b, i), subject.train)
        sums = torch.zeros(parts, dtype=torch.float64).index_add(0, group, wrong)
        total, squares = total + sums.sum().item(), squares + sums.square().sum().item()
    n, count = subject.train.size * passes, parts * passes
    scatter = max(squares - total**2 / count, 0.0) * count / max(1, count - 1)
    return Drawn(Estimate(total / n, math.sqrt(scatter) / n, count), min(draw_size, max(subject.train.lengths)) / n)


def enough_examples(subject: Subject) -> str | None:
    n = subject.train.size
    return None if n >= LEAST_EXAMPLES else f"the bound has no proof for {n} examples, fewer than {LEAST_EXAMPLES}"


@bound("pacbayes-kl", index=("term",), unit=ZERO_ONE, needs=("classes",),
       defined=enough_examples,
       kind={"layerwise": "certificate", "isotropic": "certificate"},
       source="Maurer 2004, arXiv:cs/0411099; Dziugaite & Roy 2017, arXiv:1703.11008; variances: bounds.md 3.7",
       assumes=(independent_start, distinct_examples))
def pacbayes_kl(subject: Subject, *, variant: str = "layerwise", delta: float = 0.05, draws: int = 500,
                draw_size: int = 8, search_examples: int = 256, trace_max_passes: int = MAX_PASSES,
                start_saw_sample: bool = False, seed: int = 0) -> dict[str, Estimate]:
    """0-1 error of the fine-tuned network with Gaussian noise on its weights, prior at the start; holds with 1 - delta.

    kl(training error || true error) <= (KL + choices + ln(2 sqrt(n)/delta)) / n, KL = sum |v_i|^2 / (2 sigma_i^2) over
    every tensor that moved (BatchNorm's running variances by their logarithm); what did not move has no noise. variant
    `layerwise`: sigma_i from the Hessian or all equal, shifted together to where the bound is least, on a grid that a
    code pays for (`choice-nats`); `isotropic`: one sigma, paid for as Dziugaite & Roy do. Terms: the training error
    under noise, from `draws` or more draws, one for every `draw_size` examples; `monte-carlo`, by which it could be
    larger, with a fifth of delta; `complexity`, the rest. The start must have been chosen without these examples: say
    start_saw_sample=True where it was trained on them. search_examples: for the search, which is paid for.
    trace_max_passes: of `hessian-trace`, whose setting is the usual one otherwise.
    """
    check_delta(delta)
    if variant not in ("layerwise", "isotropic"):
        raise unknown("variant of pacbayes-kl", variant, ["layerwise", "isotropic"])
    n = subject.train.size
    if draws < 1 or draw_size < 1:
        raise InputError(f"draws={draws} and draw_size={draw_size} came; this bound needs at least one draw of at "
                         "least one example")
    posterior = found_posterior(subject, variant, examples=search_examples, max_passes=trace_max_passes, seed=seed)
    key = f"posterior error {variant} {seed} {search_examples} {trace_max_passes} {draws} {draw_size}"
    sample = subject.remember(key, lambda: (
        drawn_error(subject, posterior, draws=draws, draw_size=draw_size, seed=seed)))
    budget = posterior.budget(n, (1 - MONTE_CARLO_SHARE) * delta)
    return certified(sample, budget, MONTE_CARLO_SHARE * delta, n, posterior, delta)


def certified(sample: Drawn, budget: float, monte_carlo_delta: float, n: int, posterior: Posterior,
              delta: float) -> Estimates:
    """The terms, their standard errors by finite differences of the whole computation."""
    def terms(error: float) -> tuple[float, float, float]:
        upper = drawn_upper(error, sample.error.n, sample.largest_weight, monte_carlo_delta)
        return error, upper - error, kl_inverse(upper, budget) - upper
    names = ("stochastic-error", "monte-carlo", "complexity")
    here, moved_on = terms(sample.error.value), terms(min(1.0, sample.error.value + sample.error.stderr))
    result = laid_out(dict(zip(names, here, strict=True)), trivial=1.0, n=n, remarks={
        "kl": posterior.kl, "choice-nats": posterior.choice,
        "confidence-nats": n * budget - posterior.kl - posterior.choice})
    spread = {k: abs(b - a) for k, a, b in zip(names, here, moved_on, strict=True)}
    spread["total"] = abs(sum(moved_on) - sum(here))
    spread["log10"] = spread["total"] / (result["total"].value * math.log(10))
    result = {k: Estimate(e.value, spread.get(k, 0.0), sample.error.n if spread.get(k) else n)
              for k, e in result.items()}
    return Estimates(result, classifier="fine-tuned weights with Gaussian noise, drawn anew for every prediction",
                     prior="Gaussian about the start, same variances",
                     delta={"PAC-Bayes": (1 - MONTE_CARLO_SHARE) * delta, "Monte Carlo": monte_carlo_delta},
                     sigmas=[min(posterior.sigmas, default=0.0), max(posterior.sigmas, default=0.0)])
