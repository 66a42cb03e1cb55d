"""Which algorithm fine-tunes best on wrong labels?

Digits 5-9 with symmetric label noise, starts pretrained on digits 0-4: `genmeasure run analysis/label_noise.py --out
out/label_noise`, then `python figures/label_noise.py`. The last epoch is kept, except by early stopping. Radii, and
what else has to be chosen, by the validation error (clean labels) of seeds 100 and 101 at noise 0.4.
"""

import dataclasses
from pathlib import Path

from genmeasure.demo import FINE_TUNING, Run, make
from genmeasure.engine import LocalEngine
from genmeasure.study import Request
from genmeasure.subject import SubjectFiles

NOISES, SEEDS = (0.2, 0.4), 6
METHODS = {
    "plain": ("plain", {}), "early stopping": ("early-stopping", {"patience": 8}),
    "label smoothing": ("label-smoothing", {}), "mixup": ("mixup", {}),
    "generalized cross-entropy": ("generalized-cross-entropy", {}),
    "early learning": ("early-learning-regularization", {}),
    "self-labeling": ("self-labeling", {"threshold": 0.7, "temperature": 1.0, "radius": None}),
    "constraint": ("layer-ball", {"radius": 0.25, "head_radius": 1.5}),
    "consistent loss": ("consistent-loss", {}),
    "consistent loss + constraint": ("consistent-layer-ball", {"radius": 0.4, "head_radius": 1.5})}
BY, CLUSTER, AXES = "noise", ("method", "noise"), ("method", "noise")
REQUESTS = [Request("gap"), Request("distance"), Request("hessian-trace", {"rtol": 0.05})]


def SUBJECTS() -> list[SubjectFiles]:
    return make([Run(Path("out/label_noise"), method, noise, seed, dataclasses.replace(FINE_TUNING, seed=seed),
                     parameters, variant) for noise in NOISES for seed in range(SEEDS)
                 for variant, (method, parameters) in METHODS.items()], engine=LocalEngine(2))
