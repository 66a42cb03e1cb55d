"""Does regularized self-labeling need both of its halves? Plain fine-tuning, either half alone, and both, under noise.

Digits 5-9 with symmetric label noise, starts pretrained on digits 0-4: `genmeasure run analysis/self_labeling.py --out
out/self_labeling`, then `python figures/self_labeling.py`. At full scale a ResNet-18 on MIT-Indoor (Li & Zhang 2021).
The last epoch is kept: nothing is chosen by the test or the validation data. The parameters were chosen by the
validation error (clean labels) of seeds 100 to 103 at noise 0.4.
"""

import dataclasses
import json
from pathlib import Path

import published_images
import torch

from genmeasure import demo
from genmeasure.checkpoints.build import build
from genmeasure.checkpoints.match import match
from genmeasure.checkpoints.read import read
from genmeasure.data.readers import load_for
from genmeasure.engine import LocalEngine
from genmeasure.fine_tuned import FineTuned, make
from genmeasure.study import Request
from genmeasure.subject import SubjectFiles
from genmeasure.training.evaluate import predict
from genmeasure.training.examples import whole

SCALES = ("quick", "small", "full")
NOISES = {"quick": (0.4,), "small": (0.2, 0.4, 0.6), "full": (0.2, 0.4, 0.6, 0.8)}
SEEDS = {"quick": 2, "small": 6, "full": 3}
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


PUBLISHED = {0.2: (7.80247, 14.07740, 2.0), 0.4: (8.47139, 19.01911, 2.0), 0.6: (10.75760, 19.81576, 2.0),
             0.8: (9.20317, 6.41569, 1.5)}
"""Radius, radius of the head and temperature of Li & Zhang 2021 for a ResNet-18 on MIT-Indoor (public code)."""


def CHECKPOINTS(scale: str) -> list[FineTuned]:
    return [_published(noise, seed, variant) if scale == "full" else
            demo.checkpoint(folder_of(scale), variant, *METHODS[variant], noise, seed)
            for noise in NOISES[scale] for seed in range(SEEDS[scale])
            for variant in (PUBLISHED_METHODS if scale == "full" else METHODS)]


PUBLISHED_METHODS = ("plain", "constraint", "self-labeling", "both")


def _published(noise: float, seed: int, variant: str) -> FineTuned:
    radius, head_radius, temperature = PUBLISHED[noise]
    ball = {"radius": radius, "head_radius": head_radius, "groups": "resnet"}
    free = {"threshold": 0.9, "temperature": temperature, "radius": None}
    method, parameters = {"plain": ("plain", {}), "constraint": ("layer-ball", ball),
                          "self-labeling": ("self-labeling", free), "both": ("self-labeling", free | ball)}[variant]
    return published_images.fine_tuned(folder_of("full"), "resnet18", "indoor", seed, variant=variant, method=method,
                                       parameters=parameters, labels=(("noise", noise),),
                                       noise=f"symmetric:rate={noise},include_true=True")


def folder_of(scale: str) -> Path:
    return Path("out/self_labeling" if scale == "small" else f"out/self_labeling-{scale}")


def SUBJECTS(scale: str) -> list[SubjectFiles]:
    wanted = CHECKPOINTS(scale)
    if scale != "full":
        demo.write_starts(folder_of(scale), range(SEEDS[scale]))
    subjects = make(wanted, device="auto" if scale == "full" else "cpu", engine=LocalEngine(2))
    return [dataclasses.replace(subject, labels=(*subject.labels, *facts(one)))
            for one, subject in zip(wanted, subjects, strict=True)]


def facts(made: FineTuned) -> list[tuple[str, float]]:
    """Labels that were corrected and the share of them that are right now; the mean weights that examples with right
    and with wrong given labels have at the end, over the mean weight of all."""
    checkpoint, examples = read(made.end), whole(load_for(made.model, made.train))
    given, clean = examples.targets, examples.clean
    now = given.clone()
    for row in json.loads(checkpoint.metadata["report"])["loss"]:
        now[row["row"]] = row["after"]
    changed, right = now != given, given == clean
    model = build(made.model)
    match(model, checkpoint.tensors)
    chosen = torch.softmax(predict(model, examples, 256).double(), 1)[torch.arange(len(given)), given]
    weight = chosen ** (1 / made.parameters.get("temperature", 1.0))
    weight /= weight.mean()
    precision = (now == clean)[changed].double().mean().item() if changed.any() else float("nan")
    return [("corrected", int(changed.sum())), ("precision", precision),
            ("weight-right", weight[right].mean().item()), ("weight-wrong", weight[~right].mean().item())]
