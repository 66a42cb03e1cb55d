"""Does a distance constraint help where there are only a few images of each class?

Episodes of five classes of CIFAR-100 with five images each, ResNet-20 with CIFAR-10's weights and a new head, tuned
without and with constraints, and with convolutions that stay as they are. Every episode is met by every method, so that
differences are paired. `genmeasure run analysis/few_shot.py --out out/few_shot`, then `python figures/few_shot.py`.
Of each constraint two radii are shown; smaller ones were worse on five other episodes.
"""

from pathlib import Path

from resnet20 import COLOURS, STARTS
from resnet20 import __file__ as NETWORK

from genmeasure.engine import LocalEngine
from genmeasure.fine_tuned import FineTuned, make
from genmeasure.study import Request
from genmeasure.subject import SubjectFiles
from genmeasure.training.settings import Settings

SCALES = ("quick", "small", "full")
WAYS, SHOTS, QUERIES = 5, 5, 15
EPISODES = {"quick": 3, "small": 16, "full": 600}
GROWTH = 1.1
METHODS = {
    "plain": ("plain", {}),
    **{f"constant, {radius}": ("layer-ball", {"radius": radius, "head_radius": None}) for radius in (0.3, 1.0)},
    **{f"layer-wise, {radius}": ("layer-ball", {"radius": radius, "growth": GROWTH, "head_radius": None})
       for radius in (0.1, 0.3)},
    "convolutions kept": ("layer-ball", {"radius": 0.0, "head_radius": None})}
SETTINGS = {"epochs": 20, "learning_rate": 1e-3, "head_factor": 10.0, "schedule": "cosine", "device": "cpu"}
BY, CLUSTER, AXES = "", ("method", "episode"), ("method", "episode")
REQUESTS = (Request("gap"), Request("distance"))

PUBLISHED = ("mini_imagenet/test", 84, 12e9)
"""Folder of the 20 classes of meta-test, side of the images, and how many operations a ResNet-12's forward pass on one
takes, about. Li & Zhang 2021 fine-tune a ResNet-12 that was pretrained on the other classes."""


def checkpoint(folder: Path, variant: str, method: str, parameters: dict, episode: int, *, seed: int = 0,
               full: bool = False) -> FineTuned:
    """One episode, drawn by its number and `seed`, and one way to fine-tune on it."""
    if full:
        pixels, model, start = (f"resize={PUBLISHED[1]}&crop={PUBLISHED[1]}&mean=0.485,0.456,0.406&"
                                "std=0.229,0.224,0.225"), f"timm:resnet12?num_classes={WAYS}", "resnet12.safetensors"
        source, sizes = PUBLISHED[0], {"examples": WAYS * SHOTS, "flops": PUBLISHED[2]}
    else:
        pixels, model, start = COLOURS, f"{NETWORK}:network?classes={WAYS}", STARTS["pretrained"]
        source, sizes = "cifar100_train4k", {}
    drawn = f"{source}?ways={WAYS}&shots={SHOTS}&queries={QUERIES}&episode={episode}&seed={seed}&{pixels}"
    return FineTuned(f"{variant}-episode-{episode}", folder / "checkpoints" / f"episode-{seed}-{episode}" /
                     f"{variant}.safetensors", model, start, f"{drawn}#support", None, f"{drawn}#query", method,
                     parameters, Settings(**SETTINGS, seed=episode), (("method", variant), ("episode", episode)),
                     head="head", **sizes)


def CHECKPOINTS(scale: str) -> list[FineTuned]:
    folder = Path("out/few_shot" if scale == "small" else f"out/few_shot-{scale}")
    return [checkpoint(folder, variant, method, parameters, episode, full=scale == "full")
            for episode in range(EPISODES[scale]) for variant, (method, parameters) in METHODS.items()]


def SUBJECTS(scale: str) -> list[SubjectFiles]:
    return make(CHECKPOINTS(scale), device="auto" if scale == "full" else "cpu", engine=LocalEngine(2))
