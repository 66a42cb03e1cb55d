"""Which algorithm fine-tunes best on wrong labels?

Digits 5-9, starts pretrained on digits 0-4, with symmetric noise and with labels of an auxiliary network, whose errors
are correlated with the images; and CIFAR-10 with the labels that people gave (CIFAR-10N), a small network that was
pretrained on CIFAR-100. `genmeasure run analysis/label_noise.py --out out/label_noise`, then `python
figures/label_noise.py`; CIFAR comes from the data pack. The last epoch is kept, except by early stopping. Radii, and
what else has to be chosen, by the validation error (clean labels) of seeds 100 and 101 of the digits at noise 0.4 and,
for CIFAR-10, of seed 100 with the worse labels.
"""

from pathlib import Path

import digit_runs
import numpy as np
import published_images
import torch
from torch import nn

from genmeasure.checkpoints.build import build
from genmeasure.data import manifest
from genmeasure.data.batches import Batches
from genmeasure.data.readers import load
from genmeasure.data.selection import Selection
from genmeasure.demo import MODEL
from genmeasure.engine import LocalEngine
from genmeasure.fine_tuned import FineTuned, make
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
AUXILIARY = {"examples": 15, "epochs": 60}
"""Of the network that gives correlated labels: how many true labels it saw, and how long."""

HUMAN = {"quick": ("worse",), "small": ("aggregate", "worse")}
HUMAN_KINDS = {"aggregate": "aggre_label", "worse": "worse_label"}
HUMAN_SEEDS = {"quick": 1, "small": 4}
HUMAN_ROWS = {"quick": 100, "small": 600}
HUMAN_BALL = {"radius": 0.5, "head_radius": 2.0}
HUMAN_METHODS = {
    "plain": ("plain", {}), "early stopping": ("early-stopping", {"patience": 8}),
    "self-labeling": ("self-labeling", {"threshold": 0.9, "temperature": 2.0, "radius": None}),
    "constraint": ("layer-ball", HUMAN_BALL), "consistent loss": ("consistent-loss", {}),
    "consistent loss + constraint": ("consistent-layer-ball", HUMAN_BALL)}
COLOURS = "mean=0.485,0.456,0.406&std=0.229,0.224,0.225"
PRETRAINING = {"quick": 1, "small": 15}
SETTINGS = {"epochs": 15, "learning_rate": 1e-3, "schedule": "cosine", "device": "cpu"}
BY, CLUSTER, AXES = "noise", ("method", "noise"), ("method", "noise")


def REQUESTS(scale: str) -> list[Request]:
    return [Request("gap"), Request("distance"), Request("hessian-trace", {"rtol": 0.2 if scale == "quick" else 0.05})]


def colour_network(classes: int = 10, width: int = 32) -> nn.Module:
    """Three strided convolutions with BatchNorm and a head; [batch, 3, 32, 32] -> [batch, classes]."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.GELU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes))


HEAD = "11"
"""Name of the head in `colour_network`."""


def CHECKPOINTS(scale: str) -> list[FineTuned]:
    if scale == "full":
        return _published()
    folder = folder_of(scale)
    return [*digits(folder, scale), pretraining(folder, scale), *human(folder, scale)]


def folder_of(scale: str) -> Path:
    return Path("out/label_noise" if scale == "small" else f"out/label_noise-{scale}")


def digits(folder: Path, scale: str) -> list[FineTuned]:
    return [digit_runs.fine_tuned(folder, variant, method, parameters, noise, seed, kind=(
        f"correlated:predictions={auxiliary_file(folder, seed)}" if noise == "correlated" else ""))
            for noise in (*NOISES[scale], "correlated") for seed in range(SEEDS[scale])
            for variant, (method, parameters) in METHODS.items()]


def auxiliary_file(folder: Path, seed: int) -> Path:
    return folder / "data" / f"auxiliary-seed-{seed}.npy"


def write_auxiliary(folder: Path, seed: int) -> None:
    """Scores that a network gives to the training digits after it saw the true labels of some of them."""
    path = auxiliary_file(folder, seed)
    if path.exists():
        return
    train = load(f"{digit_runs.DATA}#train")
    rows = torch.randperm(train.size, generator=torch.Generator().manual_seed(seed))[:AUXILIARY["examples"]]
    few = Batches(train.gather(rows.sort().values), "some digits")
    settings = Settings(epochs=AUXILIARY["epochs"], learning_rate=3e-3, seed=seed, device="cpu")
    network = fine_tune(build(MODEL, seed=seed), "plain", few, settings=settings).model
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, auxiliary_scores(network, train).numpy())


def pretraining(folder: Path, scale: str) -> FineTuned:
    """The start of the checkpoints on CIFAR-10, which has seen CIFAR-100 alone."""
    place = folder / "checkpoints" / "cifar-100"
    rows = "&rows=200" if scale == "quick" else ""
    return FineTuned("start-cifar-100", place / "start.safetensors", f"{__file__}:colour_network?classes=100",
                     str(place / "drawn.safetensors"), f"cifar100_train4k?{COLOURS}{rows}",
                     test=f"cifar100_test1k?{COLOURS}", drawn=True, head=HEAD,
                     settings=Settings(**{**SETTINGS, "epochs": PRETRAINING[scale]}))


def human(folder: Path, scale: str) -> list[FineTuned]:
    """Checkpoints on CIFAR-10 with labels that people gave; the seed draws images, head and order."""
    found = []
    for kind in HUMAN[scale]:
        for seed in range(HUMAN_SEEDS[scale]):
            for variant, (method, parameters) in HUMAN_METHODS.items():
                found.append(on_human_labels(folder, scale, kind, seed, variant, method, parameters))
    return found


def on_human_labels(folder: Path, scale: str, kind: str, seed: int, variant: str, method: str,
                    parameters: dict) -> FineTuned:
    noise = f"human:kind={HUMAN_KINDS[kind]},index={index_file(folder, seed)}"
    drawn = f"cifar10_train10k?holdout=0.5&seed={seed}&{COLOURS}"
    return FineTuned(
        f"{variant}-human-{kind}-seed-{seed}",
        folder / "checkpoints" / f"cifar-10-seed-{seed}" / f"{variant}-{kind}.safetensors",
        f"{__file__}:colour_network?classes=10", str(pretraining(folder, scale).end),
        f"{drawn}&rows={HUMAN_ROWS[scale]}&noise={noise}#train", f"{drawn}&rows=500#validation",
        f"cifar10_test2k?{COLOURS}", method, parameters, Settings(**{**SETTINGS, "seed": seed}),
        (("method", variant), ("dataset", "cifar-10"), ("noise", kind), ("seed", seed)), head=HEAD,
        examples=HUMAN_ROWS[scale])


def index_file(folder: Path, seed: int) -> Path:
    return folder / "data" / f"cifar-10-index-seed-{seed}.npy"


def write_index(folder: Path, scale: str, seed: int) -> None:
    """Positions in CIFAR-10's official order of the training images that the seed draws."""
    with np.load(manifest.path("cifar10_train10k"), allow_pickle=False) as file:
        labels, official = torch.from_numpy(file["y"].astype("int64")), file["index"]
    rows, _, _ = Selection(rows=HUMAN_ROWS[scale], holdout=0.5, seed=seed).chosen(labels, "train", "cifar10_train10k")
    path = index_file(folder, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, official[rows.numpy()].astype("int64"))


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
    digit_runs.write_starts(folder, range(SEEDS[scale]))
    for seed in range(SEEDS[scale]):
        write_auxiliary(folder, seed)
    for seed in range(HUMAN_SEEDS[scale]):
        write_index(folder, scale, seed)
    make([pretraining(folder, scale)], device="cpu")
    return make([*digits(folder, scale), *human(folder, scale)], device="cpu", engine=engine)
