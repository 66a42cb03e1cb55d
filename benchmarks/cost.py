"""What our side costs by itself: a whole audit in passes over the data, and the growth with the number of examples."""

from __future__ import annotations

from collections.abc import Iterator

import ours
from harness import Row, Setting, interleaved, median_seconds, percent, say
from networks import piecewise_linear

from genmeasure.risk import GRADIENT

BUDGET = 25.0
"""Forward and backward passes over the data that a whole audit may cost."""
TOTAL_RTOL = 0.01


def audit(setting: Setting) -> Iterator[Row]:
    """The measures of `ours.AUDITED` and every bound on the full data, in forward and backward passes over it."""
    case = piecewise_linear(setting.examples(10_000, 256), setting.device.type)
    (run,) = interleaved({"ours": lambda _: ours.audit(case.subject)}, 1, setting.device)["ours"]
    answer, readings = run.result, run.result.value
    for name, rows in readings.groupby("measure"):
        say(f"  {name}: {rows['passes'].iloc[0] / GRADIENT:.3g} F+B by itself, {rows['seconds'].iloc[0]:.3g} s here")
    failed = readings[readings["error"] != ""]
    for _, row in failed.iterrows():
        say(f"  FAILED {row['measure']}: {row['error']}")
    alone = readings.groupby(["measure", "params"])["passes"].first().sum() / GRADIENT
    note = f"; {len(failed)} readings FAILED" if len(failed) else ""
    yield Row(f"whole audit in forward and backward passes, {case.label}, budget / genmeasure",
              answer.passes / GRADIENT, BUDGET,
              f"no other tool: theirs is the budget; default parameters ({', '.join(ours.AUDITED)} and all bounds), "
              f"{run.seconds:.3g} s; what readings share is counted once ({alone:.3g} if each paid for it){note}",
              answer.passes, BUDGET * GRADIENT)


def growth(setting: Setting) -> Iterator[Row]:
    """Our total trace on ten and thirty percent of the data and on all of it, against growth in proportion."""
    full = setting.examples(10_000, 1_000)
    cases = {n: piecewise_linear(n, setting.device.type) for n in (full // 10, 3 * full // 10, full)}
    small, *larger = cases
    ours.traces(cases[small].few, 0, 1.0)
    runs = interleaved({n: lambda number, case=case: ours.traces(case.subject, number, TOTAL_RTOL)
                        for n, case in cases.items()}, setting.repeats, setting.device)
    base, passes = median_seconds(runs[small]), ours.median_passes(runs[small])
    for n in larger:
        reached = max(run.result.value.reached for run in runs[n])
        yield Row(f"growth of the total trace, {cases[n].label}, in proportion to {small:,} examples / genmeasure",
                  median_seconds(runs[n]), base * n / small,
                  f"standard error {percent(TOTAL_RTOL)} (reached {percent(reached)}); theirs is what ours takes on "
                  f"{small:,} examples ({base:.3g} s) times {n / small:.3g}", ours.median_passes(runs[n]), passes)
