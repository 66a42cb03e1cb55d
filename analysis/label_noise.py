"""Which algorithm fine-tunes best on wrong labels?

Digits 5-9, starts pretrained on digits 0-4, with symmetric noise and with labels of an auxiliary network, whose errors
are correlated with the images; and CIFAR-10 with the labels that people gave (CIFAR-10N): a perceptron of two layers
on what a ResNet-20 gives its head. That network saw the true labels of these images when it was trained, the perceptron
did not. `genmeasure run analysis/label_noise.py --out out/label_noise`, then `python figures/label_noise.py`; CIFAR-10
comes from the data pack. The last epoch is kept, except by early stopping. Radii, and what else has to be chosen, by
the validation error (clean labels) of seeds 100 and 101 of the digits at noise 0.4; for CIFAR-10 nothing was chosen.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import published_images
import resnet20
import torch
from resnet20 import COLOURS
from torch import nn

from genmeasure import demo
from genmeasure.checkpoints.build import build
from genmeasure.checkpoints.match import match
from genmeasure.checkpoints.pair import read_start
from genmeasure.data import manifest
from genmeasure.data.batches import Batch, Batches
from genmeasure.data.readers import load
from genmeasure.data.selection import Selection
from genmeasure.engine import LocalEngine
from genmeasure.fine_tuned import FineTuned, make
from genmeasure.layers import forward
from genmeasure.study import Request
from genmeasure.subject import SubjectFiles
from genmeasure.training.auxiliary import auxiliary_scores
from genmeasure.training.loop import fine_tune
from genmeasure.training.settings import Settings

SCALES = ("quick", "small", "full")
NOISES = {"quick": (0.4,), "small": (0.2, 0.4)}
SEEDS = {"quick": 2, "small": 6, "full": 3}
METHODS = {
    "plain": ("plain", {}), "early stopping": ("early-stopping", {"patience": 8}),
    "label smoothing": ("label-smoothing", {}), "mixup": ("mixup", {}),
    "generalized cross-entropy": ("generalized-cross-entropy", {}),
    "early learning": ("early-learning-regularization", {}),
    "self-labeling": ("self-labeling", {"threshold": 0.7, "temperature": 1.0, "radius": None}),
    "constraint": ("layer-ball", {"radius": 0.25, "head_radius": 1.5}),
    "consistent loss": ("consistent-loss", {}),
    "consistent loss + constraint": ("consistent-layer-ball", {"radius": 0.4, "head_radius": 1.5})}
AUXILIARY = {"shots": 3, "epochs": 60}
"""Of the network that gives correlated labels: how many true labels of each class it saw, and how long."""

HUMAN = {"quick": ("worse",), "small": ("aggregate", "worse")}
HUMAN_KINDS = {"aggregate": "aggre_label", "worse": "worse_label"}
HUMAN_SEEDS = {"quick": 1, "small": 5}
HUMAN_ROWS = {"quick": (150, 50, 50), "small": (2000, 500, 1000)}
"""Images that are carried through the ResNet-20, to train (of which every seed draws half), validate and test."""
HUMAN_METHODS = {
    "plain": ("plain", {}), "early stopping": ("early-stopping", {"patience": 8}),
    "self-labeling": ("self-labeling", {"threshold": 0.9, "temperature": 1.0, "correct_from": 8, "reweight_from": 4,
                                        "radius": None}),
    "constraint": ("layer-ball", {"radius": 1.0, "head_radius": 2.0}), "consistent loss": ("consistent-loss", {}),
    "consistent loss + constraint": ("consistent-layer-ball", {"radius": 1.0, "head_radius": 2.0})}
FEATURES, HIDDEN = 64, 128
SETTINGS = {"epochs": 20, "learning_rate": 1e-3, "schedule": "cosine", "device": "cpu"}
BY, CLUSTER, AXES = "noise", ("method", "noise"), ("method", "noise")


def REQUESTS(scale: str) -> list[Request]:
    return [Request("gap"), Request("distance"), Request("hessian-trace", {"rtol": 0.2 if scale == "quick" else 0.05})]


def perceptron(classes: int = 10) -> nn.Module:
    """[batch, 64] -> [batch, classes]"""
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, classes))


def CHECKPOINTS(scale: str) -> list[FineTuned]:
    if scale == "full":
        return _published()
    folder = folder_of(scale)
    return [*digits(folder, scale), *human(folder, scale)]


def folder_of(scale: str) -> Path:
    return Path("out/label_noise" if scale == "small" else f"out/label_noise-{scale}")


def digits(folder: Path, scale: str) -> list[FineTuned]:
    few = {"epochs": 5} if scale == "quick" else {}
    return [demo.checkpoint(folder, variant, method, parameters, noise, seed, kind=(
        f"correlated:predictions={auxiliary_file(folder, seed)}" if noise == "correlated" else ""), **few)
            for noise in (*NOISES[scale], "correlated") for seed in range(SEEDS[scale])
            for variant, (method, parameters) in METHODS.items()]


def auxiliary_file(folder: Path, seed: int) -> Path:
    return folder / "data" / f"auxiliary-of-{AUXILIARY['shots']}-shots-seed-{seed}.npy"


def write_auxiliary(folder: Path, seed: int) -> None:
    """Scores that a network gives to the training digits after it saw the true labels of some of them."""
    path = auxiliary_file(folder, seed)
    if path.exists():
        return
    train = load(f"{demo.DATA}#train")
    order = torch.randperm(train.size, generator=torch.Generator().manual_seed(seed))
    rows = torch.cat([order[train.labels[order] == y][:AUXILIARY["shots"]] for y in train.labels.unique()])
    few = Batches(train.gather(rows.sort().values), "some digits")
    settings = Settings(epochs=AUXILIARY["epochs"], learning_rate=3e-3, seed=seed, device="cpu")
    network = fine_tune(build(demo.MODEL, seed=seed), "plain", few, settings=settings).model
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, auxiliary_scores(network, train).numpy())


def human(folder: Path, scale: str) -> list[FineTuned]:
    return [on_human_labels(folder, scale, kind, seed, variant, method, parameters)
            for kind in HUMAN[scale] for seed in range(HUMAN_SEEDS[scale])
            for variant, (method, parameters) in HUMAN_METHODS.items()]


def on_human_labels(folder: Path, scale: str, kind: str, seed: int, variant: str, method: str,
                    parameters: dict) -> FineTuned:
    """A checkpoint on labels that people gave; the seed draws images, start and order."""
    data, rows = folder / "data" / "cifar-10.npz", HUMAN_ROWS[scale][0] // 2
    noise = f"human:kind={HUMAN_KINDS[kind]},index={index_file(folder, seed)}"
    place = folder / "checkpoints" / f"cifar-10-seed-{seed}"
    return FineTuned(
        f"{variant}-human-{kind}-seed-{seed}", place / f"{variant}-{kind}.safetensors", f"{__file__}:perceptron",
        str(place / "start.safetensors"), f"{data}?rows={rows}&seed={seed}&noise={noise}#train", f"{data}#validation",
        f"{data}#test", method, parameters, Settings(**{**SETTINGS, "seed": seed}),
        (("method", variant), ("dataset", "cifar-10"), ("noise", kind), ("seed", seed)), drawn=True, examples=rows,
        flops=2.0 * HIDDEN * (FEATURES + 10))


def index_file(folder: Path, seed: int) -> Path:
    return folder / "data" / f"cifar-10-index-seed-{seed}.npy"


def write_human_data(folder: Path, scale: str, seeds: Sequence[int]) -> None:
    """What ResNet-20 gives its head for images of CIFAR-10, and for every seed the positions in CIFAR-10's official
    order of the training images that it draws."""
    path, (train, validation, test) = folder / "data" / "cifar-10.npz", HUMAN_ROWS[scale]
    if not path.exists():
        here = load(f"cifar10_train10k?{COLOURS}&rows={train + validation}")
        parts = {"train": here.gather(torch.arange(train)), "test": load(f"cifar10_test2k?{COLOURS}&rows={test}"),
                 "validation": here.gather(torch.arange(train, here.size))}
        arrays = {f"{name}_{part}": values for part, batches in parts.items()
                  for name, values in zip("xy", features(batches), strict=True)}
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **arrays)
    with np.load(manifest.path("cifar10_train10k"), allow_pickle=False) as file:
        labels, official = torch.from_numpy(file["y"].astype("int64")), torch.from_numpy(file["index"].astype("int64"))
    drawn, labels, _ = Selection(rows=train + validation).chosen(labels, "", "cifar10_train10k")
    for seed in seeds:
        some, _, _ = Selection(rows=train // 2, seed=seed).chosen(labels[:train], "train", str(path))
        np.save(index_file(folder, seed), official[drawn[some]].numpy())


@torch.no_grad()
def features(batches: Iterable[Batch]) -> tuple[np.ndarray, np.ndarray]:
    """[n, 64] from the ResNet-20 of the data pack, and the labels [n]."""
    network = build(resnet20.MODEL)
    match(network, read_start(resnet20.STARTS["pretrained"], network.state_dict())[0], head="head")
    network.head = nn.Identity()
    network.eval()
    pairs = [(forward(network, batch).numpy(), batch.targets.numpy()) for batch in batches]
    return tuple(np.concatenate(side) for side in zip(*pairs, strict=True))


def _published() -> list[FineTuned]:
    """A ResNet-18 on MIT-Indoor, and networks on the five classes of six domains of DomainNet (Ju, Li & Zhang 2022)."""
    ball = {"radius": 8.0, "head_radius": 14.0, "groups": "resnet"}
    methods = {"plain": ("plain", {}), "constraint": ("layer-ball", ball),
               "self-labeling": ("self-labeling", {"radius": None}), "both": ("self-labeling", ball),
               "label smoothing": ("label-smoothing", {}), "mixup": ("mixup", {}), "SAM": ("sam", {}),
               "consistent loss": ("consistent-loss", {}),
               "consistent loss + constraint": ("consistent-layer-ball", ball)}
    folder, found = folder_of("full"), []
    for seed in range(SEEDS["full"]):
        for variant, (method, parameters) in methods.items():
            for rate in (0.2, 0.4, 0.6, 0.8):
                found.append(published_images.fine_tuned(
                    folder, "resnet18", "indoor", seed, variant=variant, method=method, parameters=parameters,
                    noise=f"symmetric:rate={rate},include_true=True", labels=(("noise", rate),)))
            for domain, examples in DOMAINS.items():
                found += [_on_domain(folder, model, domain, examples, seed, variant, method, parameters)
                          for model in DOMAIN_MODELS]
    return found


DOMAINS = {"clipart": 750, "infograph": 858, "painting": 872, "quickdraw": 1500, "real": 1943, "sketch": 732}
"""Training images of sample 1: sea_turtle, vase, whale, bird and violin."""
DOMAIN_MODELS = {"torchvision:resnet18": ("torchvision:resnet18", "resnet", "fc", 3.63e9),
                 "timm:vit_base_patch16_224": ("timm:vit_base_patch16_224", "vit", "head", 3.37e10)}
"""Start, groups of the constraint, head and operations of a forward pass."""


def _on_domain(folder: Path, model: str, domain: str, examples: int, seed: int, variant: str, method: str,
               parameters: dict) -> FineTuned:
    """Labels are the majority vote of weak sources: folders of images sorted by these, and by true labels to test."""
    start, groups, head, flops = DOMAIN_MODELS[model]
    pixels, place = "resize=224&crop=224&mean=0.485,0.456,0.406&std=0.229,0.224,0.225", f"data/domainnet/{domain}"
    classes = f"{model}?num_classes=5"
    name = f"{variant}-{head}-{domain}-weak-seed-{seed}"
    chosen = {**parameters, **({"groups": groups} if "groups" in parameters else {}),
              **({"confusion": "dual-t"} if method.startswith("consistent") else {})}
    return FineTuned(
        name, folder / "checkpoints" / f"{name}.safetensors", classes, start, f"{place}/train-weak?{pixels}",
        f"{place}/validation?{pixels}", f"{place}/test?{pixels}", method, chosen,
        Settings(**{**published_images.SETTINGS, "batch_size": 8, "seed": seed}),
        (("method", variant), ("dataset", domain), ("noise", "weak"), ("seed", seed)), head=head, examples=examples,
        flops=flops)


def SUBJECTS(scale: str) -> list[SubjectFiles]:
    if scale == "full":
        return make(CHECKPOINTS(scale), engine=LocalEngine(2))
    folder, engine = folder_of(scale), LocalEngine(2)
    demo.write_starts(folder, range(SEEDS[scale]))
    for seed in range(SEEDS[scale]):
        write_auxiliary(folder, seed)
    write_human_data(folder, scale, range(HUMAN_SEEDS[scale]))
    return make([*digits(folder, scale), *human(folder, scale)], device="cpu", engine=engine)
