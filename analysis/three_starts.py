"""Is a network fine-tuned from pretrained weights more stable to noise than one that began with random ones?

ResNet-20 from random weights, from CIFAR-10's, and from weights trained on CIFAR-10 against attacks, each trained on
the same images until the training loss is about the same; then the training loss with Gaussian noise on the weights.
`genmeasure run analysis/three_starts.py --out out/three_starts`, then `python figures/three_starts.py`. Checkpoints and
images come from the data pack. The epochs were chosen by the training loss of seed 100.
"""

from pathlib import Path

import published_images
from resnet20 import STARTS, fine_tuned

from genmeasure.engine import LocalEngine
from genmeasure.fine_tuned import FineTuned, make
from genmeasure.study import Request
from genmeasure.subject import SubjectFiles

SCALES = ("quick", "small", "full")
TARGETS = ("cifar-100", "fashion-mnist")
SEEDS = {"quick": 2, "small": 5}
EPOCHS = {"pretrained": 10, "adversarially pretrained": 12, "random": 14}
QUICK_EPOCHS = {"pretrained": 2, "adversarially pretrained": 2, "random": 6}
SIGMAS = (1e-4, 1e-3, 1e-2)
BY, CLUSTER, AXES = "dataset", ("start", "dataset"), ("start", "dataset")

PUBLISHED_STARTS = {"pretrained": "torchvision:resnet18", "adversarially pretrained": "resnet18_l2_eps3.safetensors",
                    "random": None}
"""Of a ResNet-18; Li & Zhang 2021 do not say which attacks their adversarially trained one was made for."""


def REQUESTS(scale: str) -> list[Request]:
    draws = {"quick": 4, "small": 6, "full": 100}[scale]
    return [Request("gap"), Request("distance"),
            Request("noise-stability", {"sigmas": SIGMAS, "one_sided": True, "max_passes": draws})]


def CHECKPOINTS(scale: str) -> list[FineTuned]:
    if scale == "full":
        return [published_images.fine_tuned(Path("out/three_starts-full"), "resnet18", target, seed, start=file,
                                            start_name=start)
                for target in ("cub-200", "indoor") for start, file in PUBLISHED_STARTS.items() for seed in range(3)]
    folder = Path("out/three_starts-quick" if scale == "quick" else "out/three_starts")
    epochs, targets = (QUICK_EPOCHS, TARGETS[:1]) if scale == "quick" else (EPOCHS, TARGETS)
    return [fine_tuned(folder, start, target, seed, epochs=epochs[start]) for target in targets for start in STARTS
            for seed in range(SEEDS[scale])]


def SUBJECTS(scale: str) -> list[SubjectFiles]:
    return make(CHECKPOINTS(scale), device="auto" if scale == "full" else "cpu", engine=LocalEngine(2))
