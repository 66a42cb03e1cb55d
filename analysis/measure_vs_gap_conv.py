"""Which measure ranks fine-tuned checkpoints by their generalization gap? A small convolutional network.

A LeNet, pretrained on CIFAR-10, fine-tuned on 300 images of MNIST: `genmeasure run analysis/measure_vs_gap_conv.py
--out out/measure_vs_gap_conv`, then `python figures/measure_vs_gap.py`. The same question for a ResNet and for
text, and at the papers' scale, in `measure_vs_gap_resnet.py` and `measure_vs_gap_text.py`.
"""

from pathlib import Path

import pretrained

from genmeasure.fine_tuned import FineTuned, make
from genmeasure.study import Request
from genmeasure.subject import SubjectFiles
from genmeasure.training.settings import Settings

SCALES = ("quick", "small")
BY, CLUSTER, AXES = pretrained.BY, pretrained.CLUSTER, pretrained.AXES
REQUESTS = [*pretrained.ranked(), Request("norm")]


def CHECKPOINTS(scale: str) -> list[FineTuned]:
    quick = scale == "quick"
    methods = pretrained.METHODS | pretrained.ball(1.5, 0.8, 3.0)
    digits = f"{pretrained.__file__}:grey?mean=0.5,0.5,0.5&std=0.5,0.5,0.5&name=mnist_"
    return pretrained.grid(
        Path("out/measure_vs_gap_conv-quick" if quick else "out/measure_vs_gap_conv"),
        pretrained.few(methods) if quick else methods, (0.0, 0.4), range(1 if quick else 2),
        settings=Settings(epochs=20, schedule="cosine", device="cpu"), model=pretrained.lenet(), start="lenet_pytorch",
        train=f"{digits}train5k&rows=300&noise={{noise}}", validation=f"{digits}train5k&rows=100&skip=1000",
        test=f"{digits}test2k&rows=2000")


def SUBJECTS(scale: str) -> list[SubjectFiles]:
    return make(CHECKPOINTS(scale), device="cpu")
