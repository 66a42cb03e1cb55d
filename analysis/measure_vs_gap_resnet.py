"""Which measure ranks fine-tuned checkpoints by their generalization gap? A ResNet.

ResNet-20, pretrained on CIFAR-10, fine-tuned on 64 images of Fashion-MNIST: `genmeasure run
analysis/measure_vs_gap_resnet.py --out out/measure_vs_gap_resnet`, then `python figures/measure_vs_gap.py`. `--full`
is the setting of Ju, Li & Zhang (2022): ResNet-50 on CIFAR-10 and CIFAR-100.
"""

from pathlib import Path

import pretrained

from genmeasure.fine_tuned import FineTuned, make
from genmeasure.subject import SubjectFiles
from genmeasure.training.settings import Settings

SCALES = ("quick", "small", "full")
BY, CLUSTER, AXES = pretrained.BY, pretrained.CLUSTER, pretrained.AXES
REQUESTS = pretrained.ranked(left_out=("arora2018",))  # half a minute for each checkpoint
METHODS = pretrained.without(
    *((method, "weak") for method in ("label smoothing", "mixup", "noise injection", "SAM", "NSO")))


def CHECKPOINTS(scale: str) -> list[FineTuned]:
    if scale == "full":
        methods = pretrained.METHODS | pretrained.ball(1.0, 0.3, 8.0)
        return [one for data in ("cifar10", "cifar100") for one in pretrained.full(
            Path("out/measure_vs_gap_resnet-full"), data, "resnet50", methods, (0.0, 0.4), range(3))]
    quick = scale == "quick"
    rows, methods = 32 if quick else 64, METHODS | pretrained.ball(1.0, 0.3, 1.0)
    clothes = f"{pretrained.__file__}:grey?name=fashion_mnist_train6k"
    return pretrained.grid(
        Path("out/measure_vs_gap_resnet-quick" if quick else "out/measure_vs_gap_resnet"),
        pretrained.few(methods) if quick else methods, (0.0, 0.4), range(1 if quick else 2),
        settings=Settings(epochs=2 if quick else 10, batch_size=16, schedule="cosine", device="cpu"),
        model=pretrained.resnet(), start="aka_resnet20", train=f"{clothes}&rows={rows}&noise={{noise}}",
        validation=f"{clothes}&rows=64&skip=1000",
        test=f"{pretrained.__file__}:grey?name=fashion_mnist_test2k&rows={64 if quick else 600}", head="fc")


def SUBJECTS(scale: str) -> list[SubjectFiles]:
    return make(CHECKPOINTS(scale), device="auto" if scale == "full" else "cpu")
