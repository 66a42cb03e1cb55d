"""Does noise stability optimisation find flatter minima than plain fine-tuning and SAM at equal accuracy and compute?

Digits 5-9 with and without symmetric label noise, starts pretrained on digits 0-4: `genmeasure run analysis/nso.py
--out out/nso`, then `python figures/nso.py`. One epoch of SAM or NSO costs two of plain fine-tuning; `plain, twice as
long` has the same number of forward and backward passes as they. The last epoch is kept.
"""

import dataclasses
from pathlib import Path

from genmeasure.demo import FINE_TUNING, Run, make
from genmeasure.engine import LocalEngine
from genmeasure.study import Request
from genmeasure.subject import SubjectFiles

NOISES, SEEDS = (0.0, 0.4), 6
TWICE = 2 * FINE_TUNING.epochs
METHODS = {
    "plain": ("plain", {}, {}), "plain, twice as long": ("plain", {}, {"epochs": TWICE}),
    "one-sided noise 0.05, twice as long": ("noise-injection", {"sigma": 0.05}, {"epochs": TWICE}),
    "SAM 0.05": ("sam", {"rho": 0.05}, {}), "SAM 0.2": ("sam", {"rho": 0.2}, {}), "SAM 0.5": ("sam", {"rho": 0.5}, {}),
    "NSO 0.02": ("nso", {"sigma": 0.02}, {}), "NSO 0.05": ("nso", {"sigma": 0.05}, {}),
    "NSO 0.1": ("nso", {"sigma": 0.1}, {})}
BY, CLUSTER, AXES = "noise", ("method", "noise"), ("method", "noise")
REQUESTS = [Request("gap"), Request("distance"), Request("hessian-trace", {"rtol": 0.05}),
            Request("hessian-top", {"k": 1})]


def SUBJECTS() -> list[SubjectFiles]:
    return make([Run(Path("out/nso"), method, noise, seed, dataclasses.replace(FINE_TUNING, seed=seed, **settings),
                     parameters, variant) for noise in NOISES for seed in range(SEEDS)
                 for variant, (method, parameters, settings) in METHODS.items()], engine=LocalEngine(2))
