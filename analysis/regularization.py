"""Do distance constraints that grow with depth regularize better than one constraint for all layers?

ResNet-20 with CIFAR-10's weights, fine-tuned on 300 images: without a constraint, with one radius for all layers (Gouk,
Hospedales & Pontil 2021) and with radii that grow from layer to layer (Li & Zhang 2021). For every seed the radius is
the one of three with the smallest validation error (the smaller radius among equals), and so is part of the method.
`genmeasure run analysis/regularization.py --out out/regularization`, then `python figures/regularization.py`.
"""

import dataclasses
import json
from pathlib import Path

import published_images
from resnet20 import fine_tuned

from genmeasure.checkpoints.read import read
from genmeasure.engine import LocalEngine
from genmeasure.fine_tuned import FineTuned, make
from genmeasure.study import Request
from genmeasure.subject import SubjectFiles

SCALES = ("quick", "small", "full")
TARGETS = {"quick": ("cifar-100",), "small": ("cifar-100", "fashion-mnist")}
SEEDS = {"quick": 2, "small": 4}
GROWTH = 1.1
"""From layer to layer: the last of 21 radii is 6.7 times the first; plain distances are 0.3 to 1.7, five times."""
RADII = {"plain": (None,), "constant": (0.1, 0.3, 1.0), "layer-wise": (0.03, 0.1, 0.3)}
EPOCHS = {"quick": 2, "small": 8}
BY, CLUSTER, AXES = "dataset", ("method", "dataset"), ("method", "dataset")
REQUESTS = (Request("gap"), Request("distance"))

PUBLISHED = {"indoor": (0.13681, 6.40780, 2.52884), "aircrafts": (1.18331, 5.27714, 1.27680),
             "cub-200": (0.20440, 23.78506, 4.73804), "caltech-256": (0.08680, 9.45529, 1.17860),
             "cars": (1.33403, 8.26941, 3.47677), "dogs": (0.05613, 4.46282, 1.58723),
             "flowers": (0.13199, 10.76741, 4.98010)}
"""Radius, radius of the head and growth by stage of Li & Zhang 2021 for a ResNet-101 (public code). Those of constant
constraints are not published: they are chosen from these times `PUBLISHED_FACTORS`."""
PUBLISHED_FACTORS = (1, 2, 4, 8, 16)


def candidates(scale: str) -> dict[tuple[str, str, int], list[FineTuned]]:
    """The checkpoints of every data set, method and seed, one for each radius."""
    if scale == "full":
        return _published()
    folder = Path("out/regularization-quick" if scale == "quick" else "out/regularization")
    return {(target, method, seed): [
        fine_tuned(folder, "pretrained", target, seed, variant=method if radius is None else f"{method}-{radius}",
                   epochs=EPOCHS[scale], **_constraint(method, radius)) for radius in RADII[method]]
            for target in TARGETS[scale] for method in RADII for seed in range(SEEDS[scale])}


def _constraint(method: str, radius: float | None) -> dict:
    if radius is None:
        return {}
    growth = GROWTH if method == "layer-wise" else 1.0
    return {"method": "layer-ball", "parameters": {"radius": radius, "growth": growth, "head_radius": None}}


def _published() -> dict[tuple[str, str, int], list[FineTuned]]:
    folder, found = Path("out/regularization-full"), {}
    for target, (radius, head, growth) in PUBLISHED.items():
        constant = [("layer-ball", {"radius": radius * factor, "head_radius": head}) for factor in PUBLISHED_FACTORS]
        layer_wise = ("layer-ball", {"radius": radius, "growth": growth, "head_radius": head, "groups": "resnet"})
        for seed in range(3):
            for method, runs in {"plain": [("plain", {})], "constant": constant, "layer-wise": [layer_wise]}.items():
                found[target, method, seed] = [published_images.fine_tuned(
                    folder, "resnet101", target, seed, variant=f"{method}-{number}", method=name, parameters=parameters)
                    for number, (name, parameters) in enumerate(runs)]
    return found


def CHECKPOINTS(scale: str) -> list[FineTuned]:
    return [one for several in candidates(scale).values() for one in several]


def SUBJECTS(scale: str) -> list[SubjectFiles]:
    """The chosen checkpoints, labelled with what was chosen."""
    device = "auto" if scale == "full" else "cpu"
    make(CHECKPOINTS(scale), device=device, engine=LocalEngine(2))
    found = []
    for (target, method, seed), several in candidates(scale).items():
        best = min(several, key=validation_error)  # the first among equals
        found.append(dataclasses.replace(best.files(device), name=f"{method}-{target}-seed-{seed}", labels=(
            ("method", method), ("dataset", target), ("seed", seed),
            ("radius", best.parameters.get("radius", "")))))
    return found


def validation_error(made: FineTuned) -> float:
    """Of the epoch that was kept."""
    metadata = read(made.end).metadata
    return json.loads(metadata["history"])[int(metadata["chosen_epoch"]) - 1]["validation_error"]
