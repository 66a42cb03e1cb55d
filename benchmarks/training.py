"""The cost of one training step of every registered algorithm, against a plain step written by hand.

On the CPU, processor time of one thread is taken: a step is short, and other processes disturb it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from harness import Row, Setting, interleaved, main, median_seconds, say
from networks import ResNet20, RowTransformer
from torch import Tensor, nn

from genmeasure import registry
from genmeasure.data.batches import Batch
from genmeasure.risk import GRADIENT
from genmeasure.training.algorithm import Algorithm, get_algorithm
from genmeasure.training.context import Context
from genmeasure.training.evaluate import predict
from genmeasure.training.loop import Settings, step
from genmeasure.training.minibatch import MiniBatch
from genmeasure.training.optimizers import OPTIMIZERS

CLASSES = 10
PROJECTIONS = ("layer-ball", "layer-ball-fitted", "layer-ball-ratio", "frobenius-projection", "mars-projection",
               "l1-row-projection")
TARGETS = {**dict.fromkeys(PROJECTIONS, 1.1), "nso": 2.1, "nso:statistics=clean": 2.1, "sam": 2.1}
VARIANTS = {"nso:statistics=clean": ("nso", {"statistics": "clean"})}
"""Measured besides the default parameters of every algorithm."""
INSISTS = {"bsam": {"optimizer": "sgd", "momentum": 0.0}}
"""Settings without which an algorithm refuses to run; the plain step has the same."""


def conv_net(setting: Setting) -> Iterator[Row]:
    """ResNet-20 with batch normalisation on images of 32 x 32."""
    yield from steps(setting, "ResNet-20", ResNet20, (3, 32, 32), setting.of(32, 16))


def transformer(setting: Setting) -> Iterator[Row]:
    """A transformer with layer normalisation, 8 tokens and width 128."""
    yield from steps(setting, "transformer", lambda: RowTransformer(CLASSES, 128), (1, 8, 8), setting.of(256, 32))


def steps(setting: Setting, name: str, build: Callable[[], nn.Module], shape: tuple[int, ...],
          batch_size: int) -> Iterator[Row]:
    batch_size = setting.examples(batch_size, batch_size)
    clock = time.process_time if setting.device.type == "cpu" else time.perf_counter
    for label in sorted([*(member.name for member in registry.algorithm), *VARIANTS]):
        chosen, parameters = VARIANTS.get(label, (label, {}))
        settings = Settings(batch_size=batch_size, **INSISTS.get(chosen, {}))
        algorithm = get_algorithm(chosen, **parameters)
        ours, passes = algorithm_step(algorithm, build, drawn(shape, batch_size), settings, setting.device)
        theirs = plain_step(build, drawn(shape, batch_size), settings, setting.device)
        for warming in (ours, theirs) * 2:
            warming(0)
        repeats = setting.most_repeats or setting.of(9, 3)
        runs = interleaved({"ours": ours, "theirs": theirs}, repeats, setting.device, clock)
        cost = median_seconds(runs["ours"]) / median_seconds(runs["theirs"])
        target = f" (target at most {TARGETS[label]:g})" if label in TARGETS else ""
        yield Row(f"{label}, {name}, a plain step / a step", median_seconds(runs["ours"]),
                  median_seconds(runs["theirs"]),
                  f"the same {batch_size} examples and optimizer; costs {cost:.3g} plain steps{target}",
                  passes * GRADIENT, GRADIENT)


def drawn(shape: tuple[int, ...], count: int) -> Batch:
    """Random images and labels: what a step costs does not depend on them."""
    generator = torch.Generator().manual_seed(0)
    return Batch((torch.randn(count, *shape, generator=generator),),
                 torch.randint(CLASSES, (count,), generator=generator), rows=torch.arange(count))


def built(build: Callable[[], nn.Module], device: torch.device) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().to(device).train()


def algorithm_step(algorithm: Algorithm, build: Callable[[], nn.Module], examples: Batch, settings: Settings,
                   device: torch.device) -> tuple[Callable[[int], Tensor], float]:
    """A function that makes one step on all examples, and its forward-backward passes."""
    model, examples = built(build, device), examples.to(device, torch.float32)
    order = torch.Generator().manual_seed(0)
    confusion = 0.8 * torch.eye(CLASSES) + 0.2 / CLASSES
    context = Context.of(model, confusion=confusion, examples=examples, epochs=settings.epochs,
                         reference=lambda: model, settings=settings)
    algorithm = algorithm.prepare(context)
    if algorithm.adapter is not None:
        algorithm.adapter.attach(model, order)
    optimizer = OPTIMIZERS[settings.optimizer]([p for p in model.parameters() if p.requires_grad], settings)
    noise = torch.Generator(device).manual_seed(0)
    for piece in algorithm.pieces().values():
        piece.begin_epoch(1, lambda: predict(model, examples, len(examples)))

    def one(number: int) -> Tensor:
        batch = algorithm.loss.draw(examples, order, model)
        value = step(model, algorithm, MiniBatch(model, algorithm.loss, batch), optimizer, noise)
        if algorithm.average is not None:
            algorithm.average.after_step(model, settings.epochs)
        return value
    return one, algorithm.probe.passes + algorithm.loss.passes


def plain_step(build: Callable[[], nn.Module], examples: Batch, settings: Settings,
               device: torch.device) -> Callable[[int], Tensor]:
    """A function that makes one step of a loop such as anyone writes."""
    model, examples = built(build, device), examples.to(device, torch.float32)
    optimizer = OPTIMIZERS[settings.optimizer](list(model.parameters()), settings)
    (inputs,), labels = examples.inputs, examples.targets

    def one(number: int) -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()
    return one


if __name__ == "__main__":
    say("one step of every algorithm with its default parameters")
    raise SystemExit(main("training", __doc__.splitlines()[0], {"step-of-conv-net": conv_net,
                                                                "step-of-transformer": transformer}))
