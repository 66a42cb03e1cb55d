"""`genmeasure train`: a start, data and an algorithm by name become a checkpoint that `genmeasure audit` takes."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from torch import Tensor, nn

from genmeasure.checkpoints.build import build
from genmeasure.checkpoints.match import fingerprint, match, task_modules
from genmeasure.checkpoints.pair import read_start
from genmeasure.checkpoints.read import KNOWN, read
from genmeasure.checkpoints.write import write
from genmeasure.data.batches import Batches
from genmeasure.data.label_noise import noisy_labels, symmetric_confusion
from genmeasure.data.label_noise.arrays import array
from genmeasure.data.readers import load_for
from genmeasure.engine import Engine
from genmeasure.engine.ranks import Ranks, joined
from genmeasure.errors import InputError, unknown
from genmeasure.registry import named
from genmeasure.train_options import SETTINGS
from genmeasure.training.algorithm import Algorithm, get_algorithm
from genmeasure.training.context import Context, unwrapped
from genmeasure.training.loggers import Logger, TensorBoard
from genmeasure.training.loop import Result, fine_tune
from genmeasure.training.settings import Settings

FILE = ".safetensors"
LOGGERS = {"tensorboard": TensorBoard}
"""By name: functions of the folder that a logger writes to."""


def train(arguments: argparse.Namespace) -> str:
    """Carry out the command, by all processes that torchrun started; what to say at the end."""
    with joined(arguments.device) as engine:
        return carry_out(arguments, engine)


def carry_out(arguments: argparse.Namespace, engine: Engine) -> str:
    name, given = named(arguments.algorithm)
    algorithm = get_algorithm(name, **given)
    settings = Settings(**{name: getattr(arguments, name) for name in SETTINGS}, seed=arguments.seed,
                        device=arguments.device)
    out = Path(arguments.out)
    if out.suffix != FILE and out.suffix.lower() in KNOWN:
        raise InputError(f"the output {arguments.out!r} came; give a folder, or a file that ends in {FILE}")
    loggers = chosen_loggers(arguments.log or (), out)
    model = build(arguments.model, seed=arguments.seed)
    started, _ = read_start(arguments.start, model.state_dict())
    match(model, started, head=[*filter(None, [arguments.head]), *task_modules(model)])
    data = load_for(arguments.model, arguments.train)
    validation = load_for(arguments.model, arguments.validation) if arguments.validation else None
    data, confusion = with_noise(data, model, arguments)
    if isinstance(engine, Ranks):
        model = nn.parallel.DistributedDataParallel(model.to(engine.device))
    facts = {name: str(value) for name in ("algorithm", "model", "train", "validation", "noise", "confusion", "seed")
             if (value := getattr(arguments, name)) is not None}
    facts["started_from"] = arguments.start
    if out.suffix == FILE:
        return one_file(out, model, algorithm, data, validation, settings, arguments.head, confusion, facts, engine)
    result = fine_tune(model, algorithm, data, validation, settings=settings, head=arguments.head, confusion=confusion,
                       folder=out, facts=facts, save_every=arguments.save_every, loggers=loggers,
                       log_every=arguments.log_every)
    return sentence(result.checkpoint, result)


def one_file(out: Path, model: nn.Module, algorithm: Algorithm, data: Batches, validation: Batches | None,
             settings: Settings, head: str | None, confusion: Tensor | None, facts: dict[str, str],
             engine: Engine) -> str:
    """The weights alone; a run that ends early starts anew."""
    told = {**facts, "start": fingerprint(unwrapped(model).state_dict()), "settings": json.dumps(asdict(settings)),
            "train_data": data.fingerprint, "head": str(head),
            "validation_data": "none" if validation is None else validation.fingerprint}
    recipe = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    if out.exists():
        if read(out).metadata.get("recipe") != recipe:
            raise InputError(f"the file {str(out)!r} exists and was made in another way; give each run an output of "
                             "its own")
        return f"{out} is there already, made by this command"
    result = fine_tune(model, algorithm, data, validation, settings=settings, head=head, confusion=confusion)
    if engine.lead:
        write(out, result.model.state_dict(), {
            **told, "recipe": recipe, "epoch": str(result.chosen),
            "history": json.dumps([epoch.record() for epoch in result.history])})
    return sentence(out, result)


def sentence(path: Path, result: Result) -> str:
    chosen = result.history[result.chosen - 1]
    error = "" if chosen.validation_error != chosen.validation_error else \
        f", validation error {chosen.validation_error:.4f}"
    return (f"wrote {path} after {len(result.history)} epochs in {sum(e.seconds for e in result.history):.1f} s; epoch "
            f"{chosen.number} chosen{error}")


def chosen_loggers(names: Sequence[str], out: Path) -> list[Logger]:
    for name in names:
        if name not in LOGGERS:
            raise unknown("logger", name, LOGGERS)
    if names and out.suffix == FILE:
        raise InputError(f"--log {names[0]} came with the file {str(out)!r} as output; give a folder, in which figures "
                         "have a place")
    return [LOGGERS[name](out / name) for name in names]


def with_noise(data: Batches, model: nn.Module, arguments: argparse.Namespace) -> tuple[Batches, Tensor | None]:
    """The data with the noise asked for in their labels, and P(given label | true label) if it is known."""
    if arguments.noise is None and arguments.confusion is None:
        return data, data.confusion
    classes = Context.of(model, head=arguments.head).classes
    if arguments.noise is None:
        return data, known_confusion(arguments.confusion, classes)
    if arguments.confusion is not None:
        raise InputError("--noise and --confusion came together; the confusion matrix of noise that is made is known, "
                         "so leave --confusion out")
    if number(arguments.noise) is not None:
        raise InputError(f"--noise {arguments.noise} came without a kind; give symmetric:rate={arguments.noise} to "
                         f"make labels wrong, or --confusion {arguments.noise} for noise that is in them already")
    noisy = noisy_labels(arguments.noise, data.labels, classes, seed=arguments.seed)
    return data.relabelled(noisy.labels, f"label noise {arguments.noise}", noisy.confusion), noisy.confusion


def known_confusion(text: str, classes: int) -> Tensor:
    rate = number(text)
    if rate is None:
        return array(text)
    if not 0 <= rate < 1:
        raise InputError(f"--confusion {text} came; give a rate from 0 to below 1, or a .npy or .csv file")
    return symmetric_confusion(rate, classes)


def number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
