"""The seven bounds of the published comparison and ours, with all their terms, for images and for text.

ResNet-20, pretrained on CIFAR-10, fine-tuned on Fashion-MNIST (a checkpoint of `measure_vs_gap_resnet.py`) and on
CIFAR-100; MiniLM-L6's last block on sentences of SST-2 and pairs of MRPC: `genmeasure run analysis/bound_comparison.py
--out out/bound_comparison`, then `python figures/bound_comparison.py`. `--full` has the published columns: ResNet-50 on
CIFAR-10 and CIFAR-100, BERT-Base on MRPC and SST-2.
"""

import dataclasses
from pathlib import Path

import measure_vs_gap_resnet
import pretrained

from genmeasure.fine_tuned import FineTuned, make
from genmeasure.study import Request
from genmeasure.subject import SubjectFiles
from genmeasure.training.settings import Settings

SCALES = ("quick", "small", "full")
PLAIN = {("plain", ""): pretrained.METHODS["plain", ""]}


def REQUESTS(scale: str) -> list[Request]:
    forms, trace = {"rtol": 0.5, "steps": 3}, {"rtol": 0.1, "layer_rtol": 0.5}
    slow = ["arora2018"] if scale == "quick" else []
    found = [Request("gap"), Request("margin"), *pretrained.bounds(*slow, **forms),
             Request("zhang2024", trace), Request("bartlett2017"), Request("hold-out")]
    return found if scale == "quick" else [*found, Request("ju2022-trace", {"steps": 3, "candidates": 8, "probes": 8})]


def named(checkpoints: list[FineTuned], data: str) -> list[FineTuned]:
    """With the label that the published columns go by."""
    return [dataclasses.replace(one, name=f"{one.method}, {data}", labels=(*one.labels, ("data", data)))
            for one in checkpoints]


def CHECKPOINTS(scale: str) -> list[FineTuned]:
    if scale == "full":
        networks = {"cifar10": ("cifar-10", "resnet50"), "cifar100": ("cifar-100", "resnet50"),
                    "mrpc": ("mrpc", "bert-base-uncased"), "sst-2": ("sst-2", "bert-base-uncased")}
        return [one for data, (label, network) in networks.items() for one in named(
            pretrained.full(Path("out/bound_comparison-full"), data, network, PLAIN, (0.0,), (0,)), label)]
    quick = scale == "quick"
    folder = Path("out/bound_comparison-quick" if quick else "out/bound_comparison")
    found = named(measure_vs_gap_resnet.CHECKPOINTS(scale)[:1], "fashion-mnist")
    settings = Settings(epochs=1 if quick else 20, batch_size=16, schedule="cosine", device="cpu")
    if not quick:
        pixels = f"&{pretrained.PIXELS}"
        found += named(pretrained.grid(
            folder / "cifar-100", PLAIN, (0.0,), (0,), settings=settings, model=pretrained.resnet(classes=100),
            start="aka_resnet20", train=f"cifar100_train4k?rows=100&noise={{noise}}{pixels}", head="fc",
            validation=f"cifar100_train4k?rows=64&seed=1{pixels}", test=f"cifar100_test1k?rows=600{pixels}"),
            "cifar-100")
    for data, label, test in (("sst2", "sst-2", "dev"), ("mrpc", "mrpc", "dev"))[:1 if quick else 2]:
        place, words = folder / label, f"{pretrained.__file__}:sentences?name={data}"
        found += named(pretrained.grid(
            place, PLAIN, (0.0,), (0,), settings=dataclasses.replace(settings, learning_rate=5e-4, epochs=8),
            model=f"{pretrained.__file__}:last_block", start=pretrained.block_start(place / "checkpoints"),
            train=f"{words}_train&rows={16 if quick else 64}&noise={{noise}}", head="head",
            validation=f"{words}_train&rows=64&skip=1000", test=f"{words}_{test}&rows={64 if quick else 400}"), label)
    return found


def SUBJECTS(scale: str) -> list[SubjectFiles]:
    return make(CHECKPOINTS(scale), device="auto" if scale == "full" else "cpu")
