"""The image sets and settings of Li & Zhang 2021, arXiv:2111.04578, for the studies' full scale. No study by itself.

Folders of images, a folder per class, are expected as DATA/NAME/train, DATA/NAME/validation and DATA/NAME/test below
the current folder. Sizes as in a table of the paper that was not seen here; the settings are those of its public code.
"""

from pathlib import Path

from genmeasure.fine_tuned import FineTuned
from genmeasure.training.settings import Settings

DATA = "data"
SIZES = {"indoor": (4824, 67), "aircrafts": (3334, 100), "cub-200": (5395, 200), "caltech-256": (7680, 256),
         "cars": (7330, 196), "dogs": (10800, 120), "flowers": (1020, 102)}
"""Training images and classes."""
PIXELS = "resize=256&crop=224&mean=0.485,0.456,0.406&std=0.229,0.224,0.225"
FLOPS = {"resnet18": 3.63e9, "resnet34": 7.34e9, "resnet50": 8.18e9, "resnet101": 15.6e9}
"""Operations of a forward pass on 224 x 224 pixels."""
SETTINGS = {"epochs": 30, "learning_rate": 1e-4, "optimizer": "amsgrad", "schedule": "step", "step_epochs": 10,
            "step_factor": 0.1, "batch_size": 32, "select": "error"}


def fine_tuned(folder: Path, network: str, target: str, seed: int, *, variant: str = "plain", method: str = "plain",
               parameters: dict | None = None, start: str | None = "", start_name: str = "pretrained", noise: str = "",
               labels: tuple[tuple[str, object], ...] = (), **settings) -> FineTuned:
    """A torchvision network from its ImageNet weights; start: or from other ones, None for drawn ones.

    noise: of the training labels, as in `symmetric:rate=0.2`.
    """
    examples, classes = SIZES[target]
    name = "-".join(filter(None, (variant, start_name, target, noise.replace(":", "-"), f"seed-{seed}")))
    place = folder / "checkpoints" / f"{name}.safetensors"
    spread = f"&noise={noise},seed={seed}" if noise else ""
    return FineTuned(
        name, place, f"torchvision:{network}?num_classes={classes}",
        start or (str(place.with_name(f"random-{target}-seed-{seed}.safetensors")) if start is None
                  else f"torchvision:{network}"),
        f"{DATA}/{target}/train?{PIXELS}{spread}", f"{DATA}/{target}/validation?{PIXELS}",
        f"{DATA}/{target}/test?{PIXELS}", method, parameters or {}, Settings(**{**SETTINGS, **settings, "seed": seed}),
        (("method", variant), ("start", start_name), ("dataset", target), ("seed", seed), *labels), head="fc",
        drawn=start is None, examples=examples, flops=FLOPS[network])
