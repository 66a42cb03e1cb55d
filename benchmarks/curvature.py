"""Curvature against PyHessian 0.1, the papers' recipe and double backward example by example.

Both sides of a comparison take turns in one process, on the same data in the same batches, the same layers, dtype and
threads, after warming up on one batch. What the other side cannot reach in time is extrapolated, and says so.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import theirs
import torch
from harness import Row, Timed, interleaved, median_seconds, parser, say, table, write
from networks import Case, RowTransformer, piecewise_linear, trained_on_digits
from torch import Tensor

from genmeasure.curvature.draws import batch_generator, rademacher
from genmeasure.curvature.forms import hessian_forms
from genmeasure.curvature.gauss_newton import gauss_newton_forms, gauss_newton_traces
from genmeasure.curvature.gauss_newton import piecewise_linear as is_piecewise_linear
from genmeasure.curvature.lanczos import lanczos
from genmeasure.curvature.products import hessian_product
from genmeasure.curvature.trace import block_traces
from genmeasure.data.batches import Batch
from genmeasure.demo import digit_network
from genmeasure.engine import get_device
from genmeasure.estimate import Estimate, StratifiedMean, until_precise
from genmeasure.risk import FORWARD, GRADIENT, HESSIAN_PRODUCT
from genmeasure.subject import Subject

TOTAL_RTOL, LAYER_RTOL, SMOOTH_RTOL, EIGENVALUE_RTOL = 0.01, 0.02, 0.02, 0.001
DISAGREEMENT = 0.01
"""Forms that differ by more than this of a layer's largest are not the same quantity up to rounding."""


@dataclass(frozen=True)
class Size:
    """How much work: examples of each comparison, probes of PyHessian per run, examples of double backward."""

    examples: int
    eigenvalue_examples: int
    probes: int
    smooth_probes: int
    double_backward: int
    repeats: int
    most_products: int = 200


FULL = Size(examples=512, eigenvalue_examples=128, probes=12, smooth_probes=100, double_backward=6, repeats=3)
QUICK = Size(examples=256, eigenvalue_examples=64, probes=6, smooth_probes=40, double_backward=3, repeats=2)


@dataclass(frozen=True)
class Answer:
    """What one run of one side gave: a number or tensor, and its cost in forward-equivalents over the data."""

    value: object
    passes: float


def counted(subject: Subject, compute: Callable[[], object]) -> Answer:
    before = subject.risk.passes
    value = compute()
    return Answer(value, subject.risk.passes - before)


def median_passes(runs: Sequence[Timed[Answer]]) -> float:
    return statistics.median(run.result.passes for run in runs)


def as_percent(fraction: float) -> str:
    return f"{100 * fraction:.2g} %"


# ours

def our_traces(subject: Subject, seed: int, rtol: float, layer_rtol: float = math.inf) -> Answer:
    """What `hessian-trace` does, with the route that applies."""
    return counted(subject, lambda: block_traces(subject.risk, route="auto", rtol=rtol, layer_rtol=layer_rtol, atol=0.0,
                                                 max_passes=10_000, seed=seed))


def our_signs(subject: Subject, seed: int, rtol: float, layer_rtol: float = math.inf) -> Answer:
    """Gauss-Newton traces by one gradient with random signs per pass; `hessian-trace` does so from 33 outputs on."""
    risk, layers = subject.risk, len(subject.layers)
    tolerance = torch.tensor([layer_rtol] * layers + [rtol], dtype=torch.float64)

    def draw(number: int) -> Tensor:
        def one(batch: Batch) -> Tensor:
            signs = rademacher((len(batch), subject.classes), batch_generator("benchmark", seed, number, batch))
            return gauss_newton_traces(risk, batch, signs).double().sum(0)
        return risk.engine.batch_sums(one, risk.batches)
    watch = torch.cat([torch.eye(layers), torch.ones(1, layers)])
    return counted(subject, lambda: until_precise(draw, risk.batches.size, rtol=tolerance, numbers=range(10_000),
                                                  watch=watch))


def our_forms(subject: Subject, directions: dict[str, Tensor]) -> Answer:
    """v' H_ii v of every example, [examples, layers], by the formula that `hessian-distance` takes."""
    def compute() -> Tensor:
        formula = gauss_newton_forms if is_piecewise_linear(subject.risk) else hessian_forms
        return torch.stack([formula(subject.risk, layer, directions[layer.name]) for layer in subject.layers], 1)
    return counted(subject, compute)


def our_top(subject: Subject, rtol: float, most: int, seed: int) -> Answer:
    """Largest eigenvalue, its residual and the products spent, by Lanczos; one end only, as in power iteration."""
    names = list(subject.risk.weights)
    shapes = [w.shape for w in subject.risk.weights.values()]
    sizes = [s.numel() for s in shapes]

    def product(q: Tensor) -> Tensor:
        pieces = [x.reshape(s) for x, s in zip(q[0].split(sizes), shapes, strict=True)]
        found = hessian_product(subject.risk, dict(zip(names, pieces, strict=True)))
        return torch.cat([found[name].reshape(-1) for name in names])[None]

    def compute() -> tuple[float, float, int]:
        start = torch.randn(1, sum(sizes), generator=torch.Generator().manual_seed(seed))
        for t in lanczos(product, start.to(subject.risk.device), most):
            values, vectors = t.ritz()
            residual = (t.off_diagonal[0, -1] * vectors[0, -1, -1].abs()).item()
            if residual <= rtol * values[0, -1].abs():
                break
        return values[0, -1].item(), residual, t.diagonal.shape[1]
    return counted(subject, compute)


# comparisons

def reference(answer: Answer, layers: int) -> tuple[list[Estimate], Estimate]:
    """Each layer's trace and the total, from `block_traces` or from draws."""
    eye = torch.eye(layers, dtype=torch.float64)
    return [answer.value.estimate(e) for e in eye], answer.value.estimate()


def drawn_until(answer: Answer, layers: int = 0) -> str:
    """Which standard error our stopping rule reached: of the total, or of the median of that many layers."""
    each = [answer.value.estimate(e) for e in torch.eye(layers, dtype=torch.float64)] or [answer.value.estimate()]
    reached = statistics.median(e.stderr / abs(e.value) for e in each)
    return f"ours drawn until its rule stops (reached {as_percent(reached)})"


def agreement(what: str, ours: Estimate, theirs: Estimate) -> None:
    z = (ours.value - theirs.value) / math.hypot(ours.stderr, theirs.stderr)
    say(f"  {what}: ours {ours.value:.5g} ± {ours.stderr:.2g}, theirs {theirs.value:.5g} ± {theirs.stderr:.2g} "
        f"(z {z:.1f})")


def needed(variance: float, value: float, rtol: float) -> float:
    """Independent draws of this variance whose mean has the standard error rtol * |value|; at least one."""
    return max(1.0, variance / (rtol * value) ** 2)


def from_probes(comparison: str, runs: Sequence[Timed[Tensor]], probes: int, ours: tuple[float, float], note: str,
                count: float, rtol: float) -> Row:
    """A row whose other side is PyHessian's `probes` per run, extrapolated to `count` probes."""
    drawn = len(runs) * probes
    spread = math.sqrt(2 / (drawn - 1))
    at_equal = (f"standard error {as_percent(rtol)}; {note}; theirs EXTRAPOLATED by 1/variance from {drawn} probes "
                f"measured to {count:,.0f} (± {as_percent(spread)} if Gaussian)")
    return Row(comparison, ours[0], median_seconds(runs) / probes * count, at_equal, ours[1], HESSIAN_PRODUCT * count)


def traces_of_relu(case: Case, size: Size) -> Iterator[Row]:
    """Total and per-layer trace of a piecewise linear network against PyHessian's probes for all data."""
    subject, layers = case.subject, len(case.subject.layers)
    tool, warm = theirs.PyHessian(subject), theirs.PyHessian(case.few)
    our_traces(case.few, 0, TOTAL_RTOL)
    our_signs(case.few, 0, 1.0)
    warm.probes(2, 0)
    runs = interleaved({
        "exact": lambda number: our_traces(subject, number, TOTAL_RTOL),
        "theirs": lambda number: tool.probes(size.probes, number),
        "signs": lambda number: our_signs(subject, number, TOTAL_RTOL),
        "signs per layer": lambda number: our_signs(subject, number, math.inf, LAYER_RTOL),
    }, size.repeats, subject.risk.device)
    probes = torch.cat([run.result for run in runs["theirs"]])
    each, total = reference(runs["exact"][0].result, layers)
    agreement("total trace", total, Estimate.from_draws(probes.sum(1)))
    agreement("total trace by signs", total, runs["signs"][0].result.value.estimate())
    to_total = needed(probes.sum(1).var().item(), total.value, TOTAL_RTOL)
    counts = [needed(v, e.value, LAYER_RTOL) for v, e in zip(probes.var(0).tolist(), each, strict=True)]
    to_layer = statistics.median(counts)
    cost = {name: (median_seconds(side), median_passes(side)) for name, side in runs.items() if name != "theirs"}
    signs, per_layer = runs["signs"][0].result, runs["signs per layer"][0].result
    for name, note in (("exact", "ours exact"), ("signs", drawn_until(signs))):
        yield from_probes(f"total trace, {case.label}: PyHessian / {name}", runs["theirs"], size.probes, cost[name],
                          note, to_total, TOTAL_RTOL)
    for name, key, note in (("exact", "exact", "ours exact"),
                            ("signs", "signs per layer", f"every layer of {drawn_until(per_layer, layers)}")):
        yield from_probes(f"trace per layer, {case.label}: PyHessian / {name}", runs["theirs"], size.probes, cost[key],
                          f"median layer; {note}", to_layer, LAYER_RTOL)


def traces_of_smooth(case: Case, size: Size) -> Iterator[Row]:
    """Total trace of a smooth network by the route `split` against PyHessian's probes and the papers' recipe."""
    subject, layers = case.subject, len(case.subject.layers)
    our_traces(case.few, 0, SMOOTH_RTOL)
    theirs.paper_traces(case.few, 0, most=2)
    sides = {"ours": lambda number: our_traces(subject, number, SMOOTH_RTOL),
             "papers": lambda number: theirs.paper_traces(subject, number)}
    if theirs.pyhessian:
        tool, warm = theirs.PyHessian(subject), theirs.PyHessian(case.few)
        warm.probes(2, 0)
        sides["PyHessian"] = lambda number: tool.probes(size.smooth_probes, number)
    runs = interleaved(sides, max(2, size.repeats), subject.risk.device)
    found = runs["ours"][0].result
    _, total = reference(found, layers)
    ours = median_seconds(runs["ours"]), median_passes(runs["ours"])
    note = f"{drawn_until(found)}, route {found.value.route}"
    label = f"total trace, {case.label}"
    if theirs.pyhessian:
        probes = torch.cat([run.result for run in runs["PyHessian"]]).sum(1)
        agreement("total trace", total, Estimate.from_draws(probes))
        yield from_probes(f"{label}: PyHessian / split", runs["PyHessian"], size.smooth_probes, ours, note,
                          needed(probes.var().item(), total.value, SMOOTH_RTOL), SMOOTH_RTOL)
    mean = StratifiedMean(subject.train.size)
    for run in runs["papers"]:
        mean.add(run.result[0])
    agreement("total trace by the papers' recipe", total, mean.estimate())
    count = needed(mean.estimate().stderr ** 2 * mean.passes, total.value, SMOOTH_RTOL)
    spread = math.sqrt(2 / mean.degrees_of_freedom)
    probes = statistics.median(run.result[1] for run in runs["papers"]) / mean.strata
    bias = mean.estimate().value / total.value - 1
    yield Row(f"{label}: papers' recipe / split", ours[0], median_seconds(runs["papers"]) * count,
              f"standard error {as_percent(SMOOTH_RTOL)}; {note}; theirs EXTRAPOLATED by 1/variance from {mean.passes} "
              f"runs measured to {count:.3g} (± {as_percent(spread)} if Gaussian), {probes:.0f} probes a batch before "
              f"its rule stops, deviation from ours {100 * bias:+.1f} %", ours[1],
              count * (GRADIENT + (HESSIAN_PRODUCT - GRADIENT) * probes))


def forms(case: Case, size: Size) -> Iterator[Row]:
    """v' H_ii v of every example and layer against double backward for each of them."""
    subject, count = case.subject, min(size.double_backward, case.subject.train.size)
    generator = torch.Generator().manual_seed(0)
    directions = {name: (torch.randn(w.shape, generator=generator) * 0.1 / math.sqrt(w.numel())).to(w)
                  for name, w in subject.risk.weights.items()}
    our_forms(case.few, directions)
    theirs.example_forms(case.few, directions, 1)
    runs = interleaved({"ours": lambda number: our_forms(subject, directions),
                        "theirs": lambda number: theirs.example_forms(subject, directions, count)},
                       size.repeats, subject.risk.device)
    ours, twin = runs["ours"][0].result.value[:count], runs["theirs"][0].result.detach().cpu()
    apart = ((ours - twin).abs().amax(0) / twin.abs().amax(0)).max().item()
    equal = (f"rounding of float32 (apart by {apart:.0e} of a layer's largest)" if apart <= DISAGREEMENT else
             f"NOT EQUAL: apart by {apart:.0e} of a layer's largest")
    yield Row(f"per-example v'Hv of all layers, {case.label}: double backward / forward mode",
              median_seconds(runs["ours"]), median_seconds(runs["theirs"]) / count * subject.train.size,
              f"{equal}; theirs EXTRAPOLATED linearly from {count} examples", median_passes(runs["ours"]),
              FORWARD + GRADIENT + (HESSIAN_PRODUCT - GRADIENT) * len(subject.layers))


def top_eigenvalue(case: Case, size: Size) -> Iterator[Row]:
    """Lanczos against PyHessian's power iteration."""
    subject = case.subject
    tool, warm = theirs.PyHessian(subject), theirs.PyHessian(case.few)
    our_top(case.few, 1.0, 2, 0)
    warm.top(1.0, 2, 0)
    runs = interleaved({"ours": lambda number: our_top(subject, EIGENVALUE_RTOL, size.most_products, number),
                        "theirs": lambda number: tool.top(EIGENVALUE_RTOL, size.most_products, number)},
                       size.repeats, subject.risk.device)
    value, residual, steps = runs["ours"][0].result.value
    other, other_residual, other_steps = runs["theirs"][0].result
    say(f"  eigenvalue: ours {value:.5g} (residual {residual:.2g}, {steps} products), theirs {other:.5g} "
        f"(residual {other_residual:.2g}, {other_steps} products)")
    reached = [run.result[1] / abs(run.result[0]) <= EIGENVALUE_RTOL for run in runs["theirs"]]
    note = "" if all(reached) else f"; theirs NOT reached after {size.most_products} products, so a lower limit"
    yield Row(f"top eigenvalue, {case.label}: PyHessian's power iteration / Lanczos", median_seconds(runs["ours"]),
              median_seconds(runs["theirs"]), f"residual {as_percent(EIGENVALUE_RTOL)} of the eigenvalue{note}",
              median_passes(runs["ours"]), HESSIAN_PRODUCT * statistics.median(r.result[2] for r in runs["theirs"]))


NEEDS_PYHESSIAN = ("traces-of-relu", "top-eigenvalue")
COMPARISONS = ("traces-of-relu", "forms", "top-eigenvalue", "traces-of-smooth", "smooth-forms")


def run(size: Size, device: str, chosen: Sequence[str]) -> Iterator[Row]:
    """The chosen comparisons, one after another; what is left out is said with its reason."""
    batch_size = 64 if device == "cpu" else 256
    if not theirs.pyhessian:
        say("PyHessian is not installed, so what is compared with it is left out; install pyhessian==0.1")
        chosen = [name for name in chosen if name not in NEEDS_PYHESSIAN]
    if {"traces-of-relu", "forms", "top-eigenvalue"} & set(chosen):
        case, reason = piecewise_linear(size.examples, batch_size, device)
        few = piecewise_linear(size.eigenvalue_examples, batch_size, device)[0]
        if reason:
            say(f"ResNet-20 is left out and a small network on digits taken instead: {reason}")
        for name, compare, part in (("traces-of-relu", traces_of_relu, case), ("forms", forms, case),
                                    ("top-eigenvalue", top_eigenvalue, few)):
            if name in chosen:
                say(f"{name}: {part.label}")
                yield from compare(part, size)
    for label, build in (("GELU digits network", digit_network), ("transformer on digits", RowTransformer)):
        if {"traces-of-smooth", "smooth-forms"} & set(chosen):
            case = trained_on_digits(label, build, size.examples, batch_size, device)
            for name, compare in (("traces-of-smooth", traces_of_smooth), ("smooth-forms", forms)):
                if name in chosen:
                    say(f"{name}: {case.label}")
                    yield from compare(case, size)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser(__doc__.splitlines()[0])
    options.epilog = f"comparisons: {', '.join(COMPARISONS)}"
    given = options.parse_args(arguments)
    unknown = set(given.only or ()) - set(COMPARISONS)
    if unknown:
        options.error(f"there is no comparison {sorted(unknown)[0]!r}; choose from {', '.join(COMPARISONS)}")
    torch.set_num_threads(given.threads)
    device = get_device(given.device)
    size = QUICK if given.quick else FULL
    if given.examples:
        size = Size(**{**vars(size), "examples": min(size.examples, given.examples),
                       "eigenvalue_examples": min(size.eigenvalue_examples, given.examples)})
    if given.repeats:
        size = Size(**{**vars(size), "repeats": given.repeats})
    rows = []
    path = given.out / f"curvature-{device.type}.csv"
    for row in run(size, device.type, given.only or COMPARISONS):
        rows.append(row)
        write(rows, path, device)
    say(table(rows))
    say(f"written: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
