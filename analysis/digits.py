"""Which measure ranks fine-tuned digit networks by their generalization gap, within a level of label noise and across?

The demo's checkpoints with more seeds: `genmeasure run analysis/digits.py --out out/digits`, then `make figures`.
"""

from pathlib import Path

from genmeasure.demo import make_checkpoints
from genmeasure.engine import LocalEngine
from genmeasure.study import everything
from genmeasure.subject import SubjectFiles

SEEDS = 4
BY, CLUSTER, AXES = "noise", ("method", "noise"), ("method", "noise")
REQUESTS = [request for request in everything() if not request.member.costly]


def SUBJECTS() -> list[SubjectFiles]:
    return make_checkpoints(Path("out/digits"), seeds=SEEDS, device="cpu", engine=LocalEngine(2))
