"""Does regularized self-labeling need both of its halves? Plain fine-tuning, either half alone, and both, under noise.

Digits 5-9 with symmetric label noise, starts pretrained on digits 0-4: `genmeasure run analysis/self_labeling.py --out
out/self_labeling`, then `python figures/self_labeling.py`. The last epoch is kept: nothing is chosen by the test or the
validation data. The parameters were chosen by the validation error (clean labels) of seeds 100 to 103 at noise 0.4.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch

from genmeasure.checkpoints.build import build
from genmeasure.checkpoints.match import match
from genmeasure.checkpoints.read import read
from genmeasure.data.batches import Batches
from genmeasure.demo import FINE_TUNING, MODEL, Run, make
from genmeasure.engine import LocalEngine
from genmeasure.study import Request
from genmeasure.subject import SubjectFiles
from genmeasure.training.evaluate import predict
from genmeasure.training.examples import whole

NOISES, SEEDS = (0.2, 0.4, 0.6), 6
BALL = {"radius": 2.0, "head_radius": 4.0}
TIGHT = {"radius": 1.0, "head_radius": 2.0}
FREE = {"radius": None}
METHODS = {
    "plain": ("plain", {}), "constraint": ("layer-ball", BALL),
    "self-labeling": ("self-labeling", {"threshold": 0.7, "temperature": 1.0, **FREE}),
    "both": ("self-labeling", {"threshold": 0.7, "temperature": 1.0, **BALL}),
    "self-labeling, tau 2": ("self-labeling", {"threshold": 0.7, "temperature": 2.0, **FREE}),
    "both, tau 2": ("self-labeling", {"threshold": 0.7, "temperature": 2.0, **TIGHT})}
BY, CLUSTER, AXES = "noise", ("method", "noise"), ("method", "noise")
REQUESTS = [Request("gap"), Request("distance")]


def SUBJECTS() -> list[SubjectFiles]:
    runs = [Run(Path("out/self_labeling"), method, noise, seed, dataclasses.replace(FINE_TUNING, seed=seed), parameters,
                variant) for noise in NOISES for seed in range(SEEDS)
            for variant, (method, parameters) in METHODS.items()]
    subjects = make(runs, engine=LocalEngine(2))
    return [dataclasses.replace(subject, labels=(*subject.labels, *facts(run)))
            for run, subject in zip(runs, subjects, strict=True)]


def facts(run: Run) -> list[tuple[str, float]]:
    """Labels that were corrected and the share of them that are right now; the mean weights that examples with right
    and with wrong given labels have at the end, over the mean weight of all."""
    arrays, checkpoint = np.load(run.data, allow_pickle=False), read(run.end)
    given, clean = arrays["y_train"], arrays["clean_train"]
    now = given.copy()
    for row in json.loads(checkpoint.metadata["report"])["loss"]:
        now[row["row"]] = row["after"]
    changed = now != given
    model = build(MODEL)
    match(model, checkpoint.tensors)
    outputs = predict(model, whole(Batches.from_arrays(arrays["x_train"], given, name="train")), 256)
    probability = torch.softmax(outputs.double(), 1)[torch.arange(len(given)), torch.from_numpy(given)].numpy()
    weight = probability ** (1 / run.parameters.get("temperature", 1.0))
    weight /= weight.mean()
    return [("corrected", int(changed.sum())),
            ("precision", float((now == clean)[changed].mean()) if changed.any() else float("nan")),
            ("weight-right", float(weight[given == clean].mean())),
            ("weight-wrong", float(weight[given != clean].mean()))]
