"""Traces of the Hessian's diagonal blocks against PyHessian, curvlinops and the papers' recipe."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

import ours
import theirs
import torch
from encoders import encoder
from harness import Row, Setting, Skipped, Timed, interleaved, median_seconds, percent, say
from networks import Case, piecewise_linear, smooth
from torch import Tensor

from genmeasure.estimate import Estimate
from genmeasure.risk import GRADIENT, HESSIAN_PRODUCT

TOTAL_RTOL, LAYER_RTOL, SMOOTH_RTOL = 0.01, 0.02, 0.02


def agreement(what: str, ours: Estimate, theirs: Estimate) -> None:
    z = (ours.value - theirs.value) / math.hypot(ours.stderr, theirs.stderr)
    say(f"  {what}: ours {ours.value:.5g} ± {ours.stderr:.2g}, theirs {theirs.value:.5g} ± {theirs.stderr:.2g} "
        f"(z {z:.1f})")


def needed(variance: float, value: float, rtol: float) -> float:
    """Independent draws of this variance whose mean has the standard error rtol * |value|; at least one."""
    return max(1.0, variance / (rtol * value) ** 2)


def middle(runs: Sequence[Timed[ours.Answer]], what: str) -> float:
    """The median over our runs of `reached` or `layers_reached`."""
    return statistics.median(getattr(run.result.value, what) for run in runs)


def drawn(reached: float) -> str:
    return f"ours drawn until its rule stops (reached {percent(reached)})"


def from_probes(comparison: str, ours_cost: tuple[float, float], seconds: float, probes: int, count: float,
                rtol: float, note: str) -> Row:
    """A row whose other side is PyHessian, extrapolated from `probes` measured to `count` at `seconds` each."""
    spread = math.sqrt(2 / (probes - 1))
    at_equal = (f"standard error {percent(rtol)}; {note}; theirs EXTRAPOLATED by 1/variance from {probes} probes "
                f"measured to {count:,.0f} (± {percent(spread)} if Gaussian)")
    return Row(comparison, ours_cost[0], seconds * count, at_equal, ours_cost[1], HESSIAN_PRODUCT * count)


def against_probes(case: Case, setting: Setting, rtol: float, probes: int) -> tuple[dict[str, list[Timed]], Tensor]:
    """Our total to `rtol` and PyHessian's probes in turn; all probes [probes of all runs, layers]."""
    subject = case.subject
    tool, warm = theirs.PyHessian(subject), theirs.PyHessian(case.few)
    ours.traces(case.few, 0, 1.0)
    warm.probes(1, 0)
    runs = interleaved({"ours": lambda number: ours.traces(subject, number, rtol),
                        "theirs": lambda number: tool.probes(probes, number)}, setting.repeats, setting.device)
    drawn = torch.cat([run.result for run in runs["theirs"]])
    if len(drawn) < 2:
        raise Skipped("a single probe of PyHessian has no variance; ask for more repeats")
    total = runs["ours"][0].result.value.total
    agreement("total trace", total, Estimate.from_draws(drawn.sum(1)))
    others = [run.result.value.total.value / total.value - 1 for run in runs["ours"][1:]]
    say(f"  our other runs differ from the first by {', '.join(map(percent, others)) or 'nothing (one run)'}")
    return runs, drawn


def cost(runs: Sequence[Timed[ours.Answer]]) -> tuple[float, float]:
    return median_seconds(runs), ours.median_passes(runs)


def total_against_probes(case: Case, setting: Setting, rtol: float,
                         probes: int) -> tuple[dict[str, list[Timed]], float, Row]:
    """The runs of `against_probes`, the standard error that both sides are brought to, and the row."""
    runs, drawn_probes = against_probes(case, setting, rtol, probes)
    reached = middle(runs["ours"], "reached")
    equal = max(rtol, reached)
    count = needed(drawn_probes.sum(1).var().item(), runs["ours"][0].result.value.total.value, equal)
    row = from_probes(f"total trace, {case.label}, PyHessian / genmeasure", cost(runs["ours"]),
                      median_seconds(runs["theirs"]) / probes, len(drawn_probes), count, equal, drawn(reached))
    return runs, equal, row


def traces_of_relu(setting: Setting) -> Iterator[Row]:
    """Total and per-layer trace of a piecewise linear network on the full data against PyHessian's probes."""
    case = piecewise_linear(setting.examples(10_000, 256), setting.device.type)
    subject, probes = case.subject, setting.of(6, 4)
    runs, drawn_probes = against_probes(case, setting, TOTAL_RTOL, probes)
    runs |= interleaved({"layers": lambda number: ours.traces(subject, number, math.inf, LAYER_RTOL)},
                        setting.repeats, setting.device)
    seconds, number = median_seconds(runs["theirs"]) / probes, len(drawn_probes)
    reached = middle(runs["ours"], "reached")
    equal = max(TOTAL_RTOL, reached)
    count = needed(drawn_probes.sum(1).var().item(), runs["ours"][0].result.value.total.value, equal)
    yield from_probes(f"total trace, {case.label}, PyHessian / genmeasure", cost(runs["ours"]), seconds, number, count,
                      equal, drawn(reached))
    each = runs["layers"][0].result.value.layers
    reached = middle(runs["layers"], "layers_reached")
    equal = max(LAYER_RTOL, max(map(ours.relative, each)))
    counts = [needed(v, e.value, equal) for v, e in zip(drawn_probes.var(0).tolist(), each, strict=True)]
    for what, count in (("median layer", statistics.median(counts)), ("every layer", max(counts))):
        yield from_probes(f"trace per layer ({what}), {case.label}, PyHessian / genmeasure", cost(runs["layers"]),
                          seconds, number, count, equal,
                          f"{drawn(reached)} in the median layer, its rule asks it of every layer")


def papers_recipe(setting: Setting) -> Iterator[Row]:
    """What a run of the papers' recipe costs, which takes the maximum over batches and knows no standard error."""
    full = setting.examples(10_000, 256)
    case = piecewise_linear(full, setting.device.type)
    subject, some = case.subject, case.first(setting.examples(64, 16))
    theirs.paper_traces(case.first(4), 0, most=2)
    ours.traces(case.few, 0, 1.0)
    runs = interleaved({"ours": lambda number: ours.traces(subject, number, TOTAL_RTOL),
                        "theirs": lambda number: theirs.paper_traces(some, number)}, setting.repeats, setting.device)
    means, sizes, spent = runs["theirs"][0].result
    total, examples = means.sum(1), some.train.size
    probes = spent / len(sizes)
    say(f"  on {examples} examples: mean over batches {(total @ sizes.double() / examples).item():.4g}, maximum "
        f"{total.max().item():.4g}; ours on all: {runs['ours'][0].result.value.total.value:.4g}")
    yield Row(f"trace, {case.label}, the papers' recipe / genmeasure", median_seconds(runs["ours"]),
              median_seconds(runs["theirs"]) / examples * subject.train.size,
              f"NOT equal: theirs is one run (batches of four, {probes:.0f} probes a batch before its rule stops, "
              f"maximum over batches), which has no standard error, EXTRAPOLATED linearly from {examples} examples; "
              f"ours the mean over all examples, {drawn(middle(runs['ours'], 'reached'))}",
              ours.median_passes(runs["ours"]), GRADIENT + (HESSIAN_PRODUCT - GRADIENT) * probes)


def traces_of_encoder(setting: Setting) -> Iterator[Row]:
    """Total trace of a text encoder against PyHessian and the estimators of curvlinops."""
    for case in encoders(setting):
        runs, equal, row = total_against_probes(case, setting, SMOOTH_RTOL, setting.of(12, 3))
        yield row
        try:
            yield against_curvlinops(case, setting, runs["ours"], equal)
        except Skipped as reason:
            say(f"  left out: {reason}")


def encoders(setting: Setting) -> Iterator[Case]:
    """MiniLM-L6, and on an accelerator also BERT-base."""
    for base in (False, True) if setting.device.type == "cuda" else (False,):
        yield encoder(setting.examples(1_024, 64), setting.device.type, base)


def against_curvlinops(case: Case, setting: Setting, our_runs: Sequence[Timed[ours.Answer]], equal: float) -> Row:
    """Our runs on all examples against the cheapest of Hutchinson, Hutch++ and XTrace, extrapolated.

    The number of products each would need comes from runs on 32 examples, and their time from the same runs.
    """
    subject = case.first(setting.examples(32, 16))
    tool = theirs.Curvlinops(subject)
    small, large = setting.of((24, 72), (9, 18))
    plan = [("hutchinson", large // 3), ("hutch++", small), ("hutch++", large), *[("xtrace", large // 6 * 2)] * 3]
    tool.run("hutchinson", 2, 0)
    runs = interleaved({i: lambda _, i=i: tool.run(*plan[i], seed=i) for i in range(len(plan))}, 1, setting.device)
    done = [run[0] for run in runs.values()]
    seconds = statistics.median(run.seconds / run.result.matvecs for run in done)
    hutchinson, first, second, *repeats = (run.result for run in done)
    value = ours.traces(subject, 0, SMOOTH_RTOL).value.total
    spread = torch.tensor([d.value for d in repeats], dtype=torch.float64).std().item()
    stderr = [math.sqrt(d.variance) / abs(value.value) for d in (hutchinson, first, second)]
    rate = observed_rate(small, stderr[1], large, stderr[2])
    needs = {"hutchinson": extrapolated(hutchinson.matvecs, stderr[0], equal, 0.5),
             "hutch++": extrapolated(large, stderr[2], equal, rate),
             "xtrace": extrapolated(repeats[0].matvecs, spread / abs(value.value), equal, rate)}
    say(f"  curvlinops on {subject.train.size} examples, where ours is {value.value:.5g} ± {value.stderr:.2g}: "
        + ", ".join(f"{name} {m} products {d.value:.5g}" for (name, m), d in
                    zip(plan, (run.result for run in done), strict=True))
        + f"; standard errors {', '.join(map(percent, stderr))} and of xtrace {percent(spread / abs(value.value))}")
    best = min(needs, key=needs.get)
    counts = ", ".join(f"{name} {count:,.0f}" for name, count in needs.items())
    return Row(f"total trace, {case.label}, curvlinops' best ({best}) / genmeasure", median_seconds(our_runs),
               seconds * needs[best] * case.subject.train.size / subject.train.size,
               f"standard error {percent(equal)}; {drawn(middle(our_runs, 'reached'))}; theirs EXTRAPOLATED: products "
               f"needed ({counts}) and seconds per product from runs on {subject.train.size} of the examples; standard "
               f"errors fall with products^-0.5 for Hutchinson, for the others with products^-{rate:.2g}, as seen for "
               f"Hutch++ from {small} to {large}", ours.median_passes(our_runs), HESSIAN_PRODUCT * needs[best])


def observed_rate(small: int, before: float, large: int, after: float) -> float:
    """The power of the number of products with which a standard error falls, within what theory allows: 1/2 to 1."""
    return min(1.0, max(0.5, math.log(before / after) / math.log(large / small)))


def extrapolated(matvecs: int, stderr: float, wanted: float, rate: float) -> float:
    """Products that bring a relative standard error of `stderr` at `matvecs` products to `wanted`; at least two."""
    return max(2.0, matvecs * (stderr / wanted) ** (1 / rate))


def traces_of_smooth(setting: Setting) -> Iterator[Row]:
    """Total trace of two small smooth networks against PyHessian and the papers' recipe, run to its mean."""
    for case in smooth(setting.examples(448, 256), setting.device.type):
        yield total_against_probes(case, setting, SMOOTH_RTOL, setting.of(100, 40))[-1]
