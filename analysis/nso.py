"""Does noise stability optimisation find flatter minima than plain fine-tuning and SAM at equal accuracy and compute?

Digits 5-9 with and without symmetric label noise, starts pretrained on digits 0-4; movie reviews (MR), a perceptron on
MiniLM's embeddings; both also with weight decay, digits also with images moved at random. `genmeasure run
analysis/nso.py --out out/nso`, then `python figures/nso.py`. Reviews come from the data pack; at full scale a ResNet-34
on five image sets.
One epoch of SAM or NSO costs two of plain fine-tuning; `plain, twice as long` has the same number of forward and
backward passes as they. The last epoch is kept.
"""

from pathlib import Path

import published_images
import text

from genmeasure import demo
from genmeasure.engine import LocalEngine
from genmeasure.fine_tuned import FineTuned, make
from genmeasure.study import Request
from genmeasure.subject import SubjectFiles

SCALES = ("quick", "small", "full")
NOISES = {"quick": (0.4,), "small": (0.0, 0.4)}
SEEDS = {"quick": 2, "small": 6, "full": 3}
TWICE = 2 * demo.FINE_TUNING.epochs
DECAY = {"optimizer": "adamw", "weight_decay": 0.1}
METHODS = {
    "plain": ("plain", {}, {}), "plain, twice as long": ("plain", {}, {"epochs": TWICE}),
    "one-sided noise 0.05, twice as long": ("noise-injection", {"sigma": 0.05}, {"epochs": TWICE}),
    "SAM 0.05": ("sam", {"rho": 0.05}, {}), "SAM 0.2": ("sam", {"rho": 0.2}, {}), "SAM 0.5": ("sam", {"rho": 0.5}, {}),
    "ASAM 0.5": ("asam", {"rho": 0.5}, {}), "ASAM 2": ("asam", {"rho": 2.0}, {}),
    "random SAM 0.2": ("random-sam", {"rho": 0.2}, {}), "label smoothing": ("label-smoothing", {}, {}),
    "NSO 0.02": ("nso", {"sigma": 0.02}, {}), "NSO 0.05": ("nso", {"sigma": 0.05}, {}),
    "NSO 0.1": ("nso", {"sigma": 0.1}, {}),
    "plain, twice as long + weight decay": ("plain", {}, {"epochs": TWICE, **DECAY}),
    "NSO 0.05 + weight decay": ("nso", {"sigma": 0.05}, DECAY)}
AUGMENTED = {
    "plain, twice as long + augmentation": ("plain", {}, {"epochs": TWICE, "augment": "crop"}),
    "NSO 0.05 + augmentation": ("nso", {"sigma": 0.05}, {"augment": "crop"})}
"""Of digits, which must not be turned around."""
QUICK = ("plain", "plain, twice as long", "SAM 0.05", "NSO 0.05", "NSO 0.05 + weight decay", "NSO 0.05 + augmentation")
"""The methods of the quick scale."""
TEXT_TWICE = 2 * text.SETTINGS["epochs"]
TEXT_METHODS = {variant: (method, parameters, {k: TEXT_TWICE if k == "epochs" else v for k, v in settings.items()})
                for variant, (method, parameters, settings) in METHODS.items()}
BY, CLUSTER, AXES = "noise", ("method", "noise"), ("method", "noise")
REQUESTS = [Request("gap"), Request("distance"), Request("hessian-trace", {"rtol": 0.05}),
            Request("hessian-top", {"k": 1})]


PUBLISHED = ("indoor", "aircrafts", "cub-200", "caltech-256", "flowers")
PUBLISHED_METHODS = {
    "plain, twice as long": ("plain", {}, {"epochs": 60, "step_epochs": 20}),
    "plain": ("plain", {}, {}), "label smoothing": ("label-smoothing", {"smoothing": 0.2}, {}),
    "SAM 0.01": ("sam", {"rho": 0.01}, {}), "SAM 0.05": ("sam", {"rho": 0.05}, {}),
    "ASAM 0.2": ("asam", {"rho": 0.2}, {}), "SWA": ("swa", {}, {}),
    "one-sided noise 0.01, twice as long": ("noise-injection", {"sigma": 0.01}, {"epochs": 60, "step_epochs": 20}),
    "NSO 0.012": ("nso", {"sigma": 0.012}, {}),
    "NSO 0.012 + weight decay": ("nso", {"sigma": 0.012}, {"weight_decay": 1e-4}),
    "plain, twice as long + augmentation": ("plain", {}, {"epochs": 60, "step_epochs": 20, "augment": "crop-flip"}),
    "NSO 0.012 + augmentation": ("nso", {"sigma": 0.012}, {"augment": "crop-flip"})}
"""Of Zhang, Li & Ju 2024 for a ResNet-34 (public code); the kind of augmentation is ours."""


def CHECKPOINTS(scale: str) -> list[FineTuned]:
    if scale == "full":
        return [published_images.fine_tuned(Path("out/nso-full"), "resnet34", target, seed, variant=variant,
                                            method=method, parameters=parameters, labels=(("noise", 0.0),), **settings)
                for target in PUBLISHED for seed in range(SEEDS["full"])
                for variant, (method, parameters, settings) in PUBLISHED_METHODS.items()]
    folder = folder_of(scale)
    digits = [demo.checkpoint(folder, variant, method, parameters, noise, seed,
                              **shortened(settings, demo.FINE_TUNING.epochs, scale))
              for noise in NOISES[scale] for seed in range(SEEDS[scale])
              for variant, (method, parameters, settings) in (METHODS | AUGMENTED).items()
              if scale == "small" or variant in QUICK]
    reviews = [text.checkpoint(folder, "MR", 0.0, seed, variant, method, parameters,
                               **shortened(settings, text.SETTINGS["epochs"], scale))
               for seed in range(SEEDS[scale]) for variant, (method, parameters, settings) in TEXT_METHODS.items()
               if scale == "small" or variant in QUICK]
    return digits + reviews


def shortened(settings: dict, epochs: int, scale: str) -> dict:
    """The settings, with an eighth of the epochs at the quick scale."""
    return {**settings, "epochs": settings.get("epochs", epochs) // 8} if scale == "quick" else settings


def folder_of(scale: str) -> Path:
    return Path("out/nso" if scale == "small" else f"out/nso-{scale}")


def SUBJECTS(scale: str) -> list[SubjectFiles]:
    if scale != "full":
        demo.write_starts(folder_of(scale), range(SEEDS[scale]))
        text.write_features(folder_of(scale), "MR", text.ROWS[scale])
    return make(CHECKPOINTS(scale), device="auto" if scale == "full" else "cpu", engine=LocalEngine(2))
