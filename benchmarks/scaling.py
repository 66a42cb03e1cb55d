"""What `--plan` expects from pilots on 64 and 256 examples, against what the same requests then took.

`ours` is the middle of what is expected, on a scale of ratios, `theirs` was measured, in passes or in seconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace

from harness import Row, Setting, main
from networks import piecewise_linear

from genmeasure.plan import between, pilot
from genmeasure.shared import Shared
from genmeasure.study import Request, read

REQUESTS = (Request("gap"), Request("hessian-trace", {"rtol": 0.05}), Request("hessian-top", {"k": 1, "rtol": 0.05}),
            Request("hessian-distance"), Request("noise-stability", {"sigmas": (0.01, 0.015), "rtol": 0.2}))


def expected(setting: Setting) -> Iterator[Row]:
    """Both in one process, one after the other for every request."""
    case = piecewise_linear(setting.examples(2_048, 512), setting.device.type)
    for request in REQUESTS:
        subject = replace(case.subject, test=case.subject.train, shared=Shared())
        found = pilot(subject, [request])
        (cost,) = found.costs
        began = time.perf_counter()
        passes = read(subject, request)["passes"].iloc[0]
        seconds = time.perf_counter() - began
        expected_passes = [w / found.examples for w in cost.work]
        for what, (low, high), theirs in (("passes", expected_passes, passes), ("seconds", cost.seconds, seconds)):
            middle = math.sqrt(low * high)
            yield Row(f"{what} of {request.name}, {case.label}, measured / expected", middle, theirs,
                      f"expected {between((low, high))}, whose middle is off by {100 * (middle / theirs - 1):+.0f} %",
                      math.prod(expected_passes) ** 0.5, passes)


if __name__ == "__main__":
    raise SystemExit(main("scaling", __doc__.splitlines()[0], {"plan": expected}))
