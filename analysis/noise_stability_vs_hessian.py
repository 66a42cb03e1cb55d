"""The published table: noise stability with its spread over draws beside the Hessian approximation, sigma by sigma.

ResNet-20 and ResNet-32 as they were pretrained on CIFAR-10, and ResNet-20 fine-tuned on Fashion-MNIST (a checkpoint of
`measure_vs_gap_resnet.py`) and CIFAR-100 (one of `bound_comparison.py`): `genmeasure run
analysis/noise_stability_vs_hessian.py --out out/noise_stability_vs_hessian`, then `python
figures/noise_stability_vs_hessian.py`. `--full` has the published ones: ResNet-18 and ResNet-50 on CIFAR-100.
"""

import dataclasses
from pathlib import Path

import bound_comparison
import pretrained
import torch

import genmeasure as gm
from genmeasure.checkpoints.build import build
from genmeasure.data import manifest
from genmeasure.data.readers import load
from genmeasure.fine_tuned import FineTuned, make
from genmeasure.study import Request
from genmeasure.subject import SubjectFiles

SCALES = ("quick", "small", "full")
BY = "model"
PUBLISHED = tuple(round(0.01 + 0.001 * i, 3) for i in range(11))
SMALL = (0.0005, 0.001, 0.002, 0.004)
EXAMPLES = 64
"""Training images of the pretrained networks."""
NAMES = {"fashion-mnist": "Fashion-MNIST", "cifar-100": "CIFAR-100"}


def REQUESTS(scale: str) -> list[Request]:
    sigmas = (0.001, 0.01) if scale == "quick" else (*SMALL, *PUBLISHED)
    drawn = {"sigmas": sigmas[1:] if scale == "quick" else PUBLISHED, "one_sided": True}
    return [Request("gap"), Request("hessian-trace", {"rtol": 0.02}),
            Request("noise-stability", drawn | ({"max_passes": 4} if scale == "quick" else {})),
            Request("noise-stability", {"sigmas": sigmas, "rtol": 0.1}),
            Request("hessian-approximation", {"sigmas": sigmas, "rtol": 0.1, "trace_rtol": 0.02})]


def CHECKPOINTS(scale: str) -> list[FineTuned]:
    if scale == "full":
        plain = {("plain", ""): pretrained.METHODS["plain", ""]}
        return [dataclasses.replace(one, name=f"{network}, CIFAR-100", labels=(("model", network),))
                for network in ("resnet18", "resnet50") for one in pretrained.full(
                    Path("out/noise_stability_vs_hessian-full") / network, "cifar100", network, plain, (0.0,), (0,))]
    return [dataclasses.replace(one, labels=(("model", f"ResNet-20, fine-tuned on {NAMES[data]}"),))
            for one in bound_comparison.CHECKPOINTS(scale) if (data := dict(one.labels)["data"]) in NAMES]


def as_pretrained(depth: int, examples: int) -> gm.Subject:
    """A ResNet of the pack with some of the images that it was trained on; it stands for its own start."""
    file = manifest.path(f"aka_resnet{depth}")
    model = build(f"{pretrained.archs()}:load_checkpoint?path_or_file={file}&arch=resnet{depth}-A")
    images, test = (load(f"{name}?{pretrained.PIXELS}", batch_size=64)
                    for name in ("cifar10_train10k", "cifar10_test2k"))
    rows, others = (torch.randperm(data.size, generator=torch.Generator().manual_seed(0))[:examples].sort().values
                    for data in (images, test))
    return gm.subject(model, model, images.gather(rows), test.gather(others), name=f"ResNet-{depth}, CIFAR-10",
                      device="cpu", labels={"model": f"ResNet-{depth}, pretrained on CIFAR-10"})


def SUBJECTS(scale: str) -> list[SubjectFiles | gm.Subject]:
    made = make(CHECKPOINTS(scale), device="auto" if scale == "full" else "cpu")
    if scale == "full":
        return made
    return [*(as_pretrained(depth, 16 if scale == "quick" else EXAMPLES) for depth in (20, 32)), *made]
