"""What studies of handwritten digits have in common: the demo's network and starts, and one checkpoint.

No study by itself. Digits 5-9 from starts that were pretrained on digits 0-4 (`genmeasure/demo.py`).
"""

from collections.abc import Sequence
from pathlib import Path

from genmeasure.demo import FINE_TUNING, MODEL, Run, write_start
from genmeasure.fine_tuned import FineTuned
from genmeasure.training.settings import Settings

DATA = "digits-5-9"
EXAMPLES, FLOPS = 448, 7.56e5
"""Training images, and operations of a forward pass on one."""


def fine_tuned(folder: Path, variant: str, method: str, parameters: dict, noise: float | str, seed: int, *,
               kind: str = "", **settings) -> FineTuned:
    """One method on the digits 5-9; the seed draws start, wrong labels and order.

    noise: what the readings say of it, and the rate of symmetric noise unless `kind` is another one's specification.
    """
    kind = kind or f"symmetric:rate={noise},seed={seed}"
    return FineTuned(
        f"{variant}-noise-{noise}-seed-{seed}", end(folder, seed, f"{variant}-noise-{noise}"), MODEL,
        str(end(folder, seed, "start")), f"{DATA}?noise={kind}#train" if noise else f"{DATA}#train",
        f"{DATA}#validation", f"{DATA}#test", method, parameters,
        Settings(**{**vars(FINE_TUNING), "seed": seed, **settings}),
        (("method", variant), ("dataset", "digits"), ("noise", noise), ("seed", seed)), head="head", examples=EXAMPLES,
        flops=FLOPS)


def end(folder: Path, seed: int, name: str) -> Path:
    return folder / "checkpoints" / f"seed-{seed}" / f"{name}.safetensors"


def write_starts(folder: Path, seeds: Sequence[int]) -> None:
    for seed in seeds:
        write_start(Run(folder, "plain", 0.0, seed))
