"""What studies of ResNet-20 have in common: the network, small image sets of the data pack, and the starts.

No study by itself. The network goes by the names of the checkpoints ehanw_resnet20 and ehanw_resnet20_pgd, both trained
on CIFAR-10, the second one against attacks (projected gradient descent), but for its new head.
"""

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from genmeasure.fine_tuned import FineTuned
from genmeasure.training.settings import Settings

SIDE = 32
MODEL = f"{__file__}:network?classes=10"
STARTS = {"pretrained": "ehanw_resnet20", "adversarially pretrained": "ehanw_resnet20_pgd", "random": None}
"""Names of checkpoints; None for weights that are drawn."""
COLOURS = "mean=0.485,0.456,0.406&std=0.229,0.224,0.225"
"""Of the images that the starts were trained on."""
ROWS, TEST_ROWS = 300, 500


class Block(nn.Module):
    """Two convolutions and a shortcut, which is a convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv_1, self.bn_1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv_2, self.bn_2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = None if inputs == outputs else nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn_2(self.conv_2(F.relu(self.bn_1(self.conv_1(x)))))
        return F.relu(inner + (x if self.downsample is None else self.downsample(x)))


class ResNet20(nn.Module):
    """He et al. 2015's network of 20 layers for images of 32 x 32, [batch, 1 or 3, side, side] -> [batch, classes].

    Smaller and grey images are framed with zeros and repeated over the colours.
    """

    def __init__(self, classes: int):
        super().__init__()
        self.conv_1, self.bn_1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.stage_1, self.stage_2, self.stage_3 = (
            nn.Sequential(Block(inputs, outputs, 1 if inputs == outputs else 2), Block(outputs, outputs, 1),
                          Block(outputs, outputs, 1)) for inputs, outputs in ((16, 16), (16, 32), (32, 64)))
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] < SIDE:
            x = F.pad(x, 2 * [(SIDE - x.shape[-1]) // 2, (SIDE - x.shape[-1] + 1) // 2])
        x = F.relu(self.bn_1(self.conv_1(x.expand(-1, 3, -1, -1))))
        return self.head(self.stage_3(self.stage_2(self.stage_1(x))).mean((2, 3)))


def network(classes: int = 10) -> ResNet20:
    return ResNet20(classes)


def data(target: str, seed: int) -> tuple[str, str, str]:
    """Specifications of training, validation and test images, of which the first two depend on the seed.

    cifar-100: other ten classes for every seed, 30 images of each, 10 and 9 to validate and to test. mnist,
    fashion-mnist: 300 images, 200 and 500.
    """
    if target == "cifar-100":
        ways = f"ways=10&episode={seed}&{COLOURS}"
        return (f"cifar100_train4k?shots=30&queries=10&{ways}#support",
                f"cifar100_train4k?shots=30&queries=10&{ways}#query", f"cifar100_test1k?shots=1&queries=9&{ways}#query")
    train, test = {"mnist": ("mnist_train5k", "mnist_test2k"),
                   "fashion-mnist": ("fashion_mnist_train6k", "fashion_mnist_test2k")}[target]
    drawn = f"{train}?holdout=0.9&seed={seed}"
    return (f"{drawn}&rows={ROWS}#train", f"{drawn}&rows=200#validation", f"{test}?rows={TEST_ROWS}")


def fine_tuned(folder: Path, start: str, target: str, seed: int, *, variant: str = "plain", method: str = "plain",
               parameters: dict | None = None, **settings) -> FineTuned:
    """ResNet-20 from one of `STARTS` with a new head on ROWS images of a target; every seed draws both.

    variant: what the readings call it.
    """
    train, validation, test = data(target, seed)
    place = folder / "checkpoints" / f"{start}-{target}-seed-{seed}"
    return FineTuned(
        f"{variant}-{start}-{target}-seed-{seed}", place / f"{variant}.safetensors", MODEL,
        STARTS[start] or str(folder / "checkpoints" / f"random-seed-{seed}.safetensors"), train, validation, test,
        method, parameters or {}, Settings(**{
            "epochs": 10, "learning_rate": 1e-3, "schedule": "cosine", "head_factor": 10.0, "device": "cpu",
            "seed": seed, **settings}),
        (("method", variant), ("start", start), ("dataset", target), ("seed", seed)), head="head",
        drawn=STARTS[start] is None)
