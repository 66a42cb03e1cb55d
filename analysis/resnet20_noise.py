"""Where does the Hessian explain the noise stability of ResNet-20 on CIFAR-10, in which layers, and what do draws say?

`genmeasure run analysis/resnet20_noise.py --out out/resnet20_noise`, then `make figures`. Checkpoint and images come
from the data manifest.
"""

import torch

import genmeasure as gm
from genmeasure.checkpoints.build import build
from genmeasure.data import manifest
from genmeasure.data.readers import load
from genmeasure.measures.noise_stability import SIGMAS
from genmeasure.study import Request

EXAMPLES = 1000
LAYER_SIGMAS = (0.00125, 0.005, 0.02)
DRAWN_SIGMAS = (0.005, 0.008, 0.0125, 0.02)
REQUESTS = (
    Request("hessian-trace", {"rtol": 0.005}),
    Request("noise-stability", {"rtol": 0.06}),
    Request("hessian-approximation", {"rtol": 0.06}),
    Request("noise-stability", {"sigmas": LAYER_SIGMAS, "per_layer": True, "rtol": 0.2}),
    Request("hessian-approximation", {"sigmas": LAYER_SIGMAS, "per_layer": True, "rtol": 0.2}),
    Request("noise-stability", {"sigmas": DRAWN_SIGMAS, "one_sided": True}),
)
assert set(LAYER_SIGMAS) | set(DRAWN_SIGMAS) <= set(SIGMAS)


def SUBJECTS() -> list[gm.Subject]:
    """The checkpoint on training images drawn without replacement; it has no start, so it stands for its own."""
    file = manifest.path("aka_resnet20")
    model = build(f"{file.parents[1] / 'archs.py'}:load_checkpoint?path_or_file={file}&arch=resnet20-A")
    images = load("cifar10_train10k?mean=0.485,0.456,0.406&std=0.229,0.224,0.225", batch_size=64)
    rows = torch.randperm(images.size, generator=torch.Generator().manual_seed(0))[:EXAMPLES].sort().values
    return [gm.subject(model, model, images.gather(rows), name="ResNet-20", device="cpu")]
