"""The noise-stability curve against the papers' recipe.

Theirs draws one independent perturbation for all the data and every sigma, one-sided, and deep-copies the state dict
for each (measures.md 6). The number of its draws is extrapolated from their variance to our standard error.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

import inference
import ours
import theirs
import torch
from harness import Row, Setting, interleaved, main, median_seconds, percent, say
from networks import piecewise_linear

SIGMAS = tuple(round(0.010 + 0.001 * i, 3) for i in range(11))
"""The papers' image setting."""
RTOL, QUICK_RTOL = 0.05, 0.2
RESAMPLED = 2_000
"""Bootstrap samples that tell how well the number of their draws is known."""


def draws_needed(values: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Draws whose mean has the standard errors `wanted` [k], [..., k], from the variance of `values` [..., n, k]."""
    return (values.var(-2) / wanted.square()).clamp(min=1.0)


def resampled(values: torch.Tensor) -> torch.Tensor:
    """Bootstrap samples [`RESAMPLED`, n, k] of draws [n, k], which are independent from sigma to sigma."""
    rows = torch.randint(len(values), (RESAMPLED, *values.shape), generator=torch.Generator().manual_seed(0))
    return values.expand(RESAMPLED, -1, -1).gather(1, rows)


def curve(setting: Setting) -> Iterator[Row]:
    """Eleven sigmas, every one on our side; on theirs the median one, and every one."""
    case = piecewise_linear(setting.examples(10_000, 256), setting.device.type)
    subject, draws, rtol = case.subject, setting.of(8, 3), setting.of(RTOL, QUICK_RTOL)

    def drawn(number: int) -> torch.Tensor:
        return torch.stack([theirs.paper_noise(subject, SIGMAS, draws * number + i) for i in range(draws)])
    ours.noise_curve(case.few, SIGMAS[:1], 10.0, 0)
    theirs.paper_noise(case.few, SIGMAS[:1], 0)
    runs = interleaved({"ours": lambda number: ours.noise_curve(subject, SIGMAS, rtol, number), "theirs": drawn},
                       setting.repeats, setting.device)
    found, values = runs["ours"][0].result.value, torch.cat([run.result for run in runs["theirs"]])
    for sigma, mine, other in zip(SIGMAS, found, values.T, strict=True):
        say(f"  sigma {sigma}: ours {mine.value:.4g} ± {mine.stderr:.2g}, theirs {other.mean().item():.4g} ± "
            f"{other.std().item() / math.sqrt(len(other)):.2g}")
    reached = statistics.median(map(ours.relative, found))
    equal = max(rtol, max(map(ours.relative, found)))
    wanted = equal * torch.tensor([e.value for e in found], dtype=torch.float64)
    counts, again = draws_needed(values, wanted), draws_needed(resampled(values), wanted)
    for which, place in (("median sigma", torch.Tensor.median), ("every sigma", torch.Tensor.max)):
        count, spread = place(counts).item(), place(again, 1).values.std().item()
        yield Row(f"noise-stability curve of {len(SIGMAS)} sigmas ({which}), {case.label}, the papers' recipe / "
                  "genmeasure", median_seconds(runs["ours"]), median_seconds(runs["theirs"]) / draws * count,
                  f"standard error {percent(equal)} (ours at every sigma, reached {percent(reached)} in the median "
                  f"one; theirs at {which}); theirs EXTRAPOLATED by 1/variance from {len(values)} draws measured to "
                  f"{count:,.3g} ± {spread:.2g} (bootstrap)",
                  ours.median_passes(runs["ours"]), count * len(SIGMAS) + 1)


if __name__ == "__main__":
    raise SystemExit(main("noise_stability", __doc__.splitlines()[0],
                          {"noise-curve": curve, "memory-of-forward": inference.memory}))
