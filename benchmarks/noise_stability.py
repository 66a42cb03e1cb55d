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


def curve(setting: Setting) -> Iterator[Row]:
    """Eleven sigmas, every one on our side; on theirs the median one, and every one."""
    case = piecewise_linear(setting.examples(10_000, 256), setting.device.type)
    subject, draws, rtol = case.subject, setting.of(4, 3), setting.of(RTOL, QUICK_RTOL)

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
    counts = [max(1.0, v / (equal * e.value) ** 2) for v, e in zip(values.var(0).tolist(), found, strict=True)]
    spread = math.sqrt(2 / (len(values) - 1))
    for which, count in (("median sigma", statistics.median(counts)), ("every sigma", max(counts))):
        yield Row(f"noise-stability curve of {len(SIGMAS)} sigmas ({which}), {case.label}, the papers' recipe / "
                  "genmeasure", median_seconds(runs["ours"]), median_seconds(runs["theirs"]) / draws * count,
                  f"standard error {percent(equal)} (ours at every sigma, reached {percent(reached)} in the median "
                  f"one; theirs at {which}); theirs EXTRAPOLATED by 1/variance from {len(values)} draws measured to "
                  f"{count:,.3g} (± {percent(spread)} if Gaussian)",
                  ours.median_passes(runs["ours"]), count * len(SIGMAS) + 1)


if __name__ == "__main__":
    raise SystemExit(main("noise_stability", __doc__.splitlines()[0],
                          {"noise-curve": curve, "memory-of-forward": inference.memory}))
