"""Do the distances of fine-tuning grow with depth?

Relative Frobenius distances of ResNet-20's layers after plain fine-tuning of CIFAR-10's weights with Adam and with SGD
and after training from random weights. `genmeasure run analysis/layer_distances.py --out out/layer_distances`, then
`python figures/layer_distances.py`. Shares its checkpoints with `three_starts` and comes from the same data pack.
"""

from pathlib import Path

import published_images
import three_starts
from resnet20 import fine_tuned

from genmeasure.engine import LocalEngine
from genmeasure.fine_tuned import FineTuned, make
from genmeasure.study import Request
from genmeasure.subject import SubjectFiles

SCALES = ("quick", "small", "full")
SGD = {"optimizer": "sgd", "learning_rate": 0.02, "head_factor": 1.0}
BY, CLUSTER, AXES = "dataset", ("method", "dataset"), ("method", "dataset")
REQUESTS = (Request("distance"), Request("gap"))


def CHECKPOINTS(scale: str) -> list[FineTuned]:
    if scale == "full":
        return [published_images.fine_tuned(Path("out/layer_distances-full"), "resnet18", target, seed, variant="adam")
                for target in published_images.SIZES for seed in range(3)]
    folder = Path("out/layer_distances-quick" if scale == "quick" else "out/layer_distances")
    shared = three_starts.CHECKPOINTS(scale)
    epochs = (three_starts.QUICK_EPOCHS if scale == "quick" else three_starts.EPOCHS)["pretrained"]
    pairs = {(dict(one.labels)["dataset"], one.settings.seed): None for one in shared}
    return [*shared, *(fine_tuned(folder, "pretrained", target, seed, variant="sgd", epochs=epochs, **SGD)
                       for target, seed in pairs)]


def SUBJECTS(scale: str) -> list[SubjectFiles]:
    return make(CHECKPOINTS(scale), device="auto" if scale == "full" else "cpu", engine=LocalEngine(2))
