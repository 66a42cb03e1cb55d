"""How small can a certificate be on real data, beside the published rows?

Fine-tuned are heads on networks that never saw the data: a ResNet-20 trained against attacks on CIFAR-10, for the
digits of MNIST and the clothes of Fashion-MNIST. `genmeasure run analysis/certificates.py --out out/certificates`; the
files come from the data pack (GENMEASURE_DATA).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from genmeasure.checkpoints.build import build
from genmeasure.checkpoints.write import write
from genmeasure.data import manifest
from genmeasure.data.readers import undo_differences
from genmeasure.study import Request
from genmeasure.subject import SubjectFiles

FOLDER = Path("out/certificates/checkpoints")
START = "ehanw_resnet20_pgd"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DATA = {"mnist": ("mnist_train5k", "mnist_test2k"), "fashion-mnist": ("fashion_mnist_train6k", "fashion_mnist_test2k")}
SIGMA, PULL = 0.3, 0.1
"""Noise on the head while it is trained, and how strongly it is pulled to zero in units of the PAC-Bayes bound's KL.

Both could be chosen by the certificates themselves, which hold for all heads at once.
"""
STEPS, BATCH, RATE = 3000, 256, 0.05

REQUESTS = (
    *(Request(name, {"variant": "table"}) for name in ("pitas2017", "arora2018", "long2020", "gouk2021", "li2021",
                                                      "neyshabur2018")),
    Request("ju2022"), Request("gap"), Request("hold-out"), Request("hold-out", {"variant": "bernstein"}),
    *(Request("lotfi2022", {"variant": v, "search_examples": 256}) for v in ("kl", "catoni")),
    *(Request("pacbayes-kl", {"variant": v, "search_examples": 256, "draws": 600}) for v in ("isotropic", "layerwise")))


def images(name: str) -> Mapping[str, np.ndarray]:
    """Grey images of 28 x 28 as the network takes colour images of 32 x 32, normalised as those."""
    with np.load(manifest.verify(name), allow_pickle=False) as file:
        grey, labels = undo_differences(file["delta"]), file["y"].astype(np.int64)
    x = np.pad(grey.astype(np.float32) / 255, ((0, 0), (2, 2), (2, 2)))[:, None].repeat(3, 1)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (MEAN, STD))
    return {"x": (x - mean) / std, "y": labels}


def model() -> torch.nn.Module:
    file = manifest.verify(START)
    return build(f"{file.parents[1] / 'archs.py'}:load_checkpoint?path_or_file={file}&arch=resnet20-B")


def features(net: torch.nn.Module, x: Tensor) -> Tensor:
    """What the head is given, [n, 64]; the network below it stays as it is."""
    found: list[Tensor] = []
    hook = net.fc.register_forward_hook(lambda _, given, __: found.append(given[0]))
    with torch.no_grad():
        for part in x.split(250):
            net(part)
    hook.remove()
    return torch.cat(found)


def trained_head(x: Tensor, y: Tensor, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weight and bias from zero, by cross-entropy under noise on both plus PULL times the KL over n (Adam)."""
    draw, n = torch.Generator().manual_seed(seed), len(x)
    head = [torch.zeros(classes, x.shape[1], requires_grad=True), torch.zeros(classes, requires_grad=True)]
    optimizer = torch.optim.Adam(head, RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        rows = torch.randint(n, (BATCH,), generator=draw)
        spread = SIGMA * (x[rows].square().sum(1, keepdim=True) + 1).sqrt()  # what noise on W and b does to an output
        outputs = F.linear(x[rows], *head) + spread * torch.randn(BATCH, classes, generator=draw)
        pull = sum(p.square().sum() for p in head) / (2 * SIGMA**2 * n)
        loss = F.cross_entropy(outputs, y[rows], reduction="none").sum() / BATCH + PULL * pull
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return head[0].detach(), head[1].detach()


def fine_tuned(data: str) -> tuple[Path, Path]:
    """Start (without a head) and fine-tuned checkpoint, made where they are missing."""
    start, end = FOLDER / "start.safetensors", FOLDER / f"{data}.safetensors"
    if not end.exists():
        net, train = model(), images(DATA[data][0])
        weight, bias = trained_head(features(net, torch.from_numpy(train["x"])), torch.from_numpy(train["y"]), 10)
        state = dict(net.state_dict())
        FOLDER.mkdir(parents=True, exist_ok=True)
        write(start, {k: v for k, v in state.items() if not k.startswith("fc.")}, {"model": START})
        write(end, state | {"fc.weight": weight, "fc.bias": bias}, {"model": START, "data": data})
    return start, end


def SUBJECTS() -> list[SubjectFiles]:
    found = []
    for data, (train, test) in DATA.items():
        start, end = fine_tuned(data)
        found.append(SubjectFiles(data, f"{__file__}:model", str(start), str(end), f"{__file__}:images?name={train}",
                                  f"{__file__}:images?name={test}", device="cpu", head="fc",
                                  labels=(("data", data),)))
    return found
