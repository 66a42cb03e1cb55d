"""`hf:FOLDER`: the models of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from genmeasure.checkpoints.build import library, unusable
from genmeasure.checkpoints.locate import locate
from genmeasure.errors import InputError, unknown
from genmeasure.registry import model_family

TASKS = {"sequence-classification": "AutoModelForSequenceClassification",
         "token-classification": "AutoModelForTokenClassification", "causal-lm": "AutoModelForCausalLM",
         "image-classification": "AutoModelForImageClassification"}


@model_family("hf", source="transformers (Wolf et al. 2020, arXiv:1910.03771)")
def hf(folder: str, arguments: Mapping[str, Any]) -> nn.Module:
    """What FOLDER/config.json describes, such as hf:FOLDER?task=sequence-classification&num_labels=2.

    The architecture is the one that the configuration names, `?task=` (sequence-classification, token-classification,
    causal-lm, image-classification) or `?architecture=BertForSequenceClassification`. Weights are drawn; the trained
    ones are read and matched like any checkpoint. Other arguments change the configuration. In place of a folder,
    `hub:OWNER/NAME` and names of the manifest are taken too.

    Raises `InputError` without a configuration or the library, and for names of settings, tasks and architectures that
    do not exist.
    """
    folder = str(locate(folder))
    if not (Path(folder) / "config.json").is_file():
        raise InputError(f"there is no config.json in {folder!r}; give a folder saved by save_pretrained, "
                         "as in hf:path/to/folder")
    transformers = library("transformers", "text")
    settings = dict(arguments)
    name, task = settings.pop("architecture", None), settings.pop("task", None)
    if task is not None and task not in TASKS:
        raise unknown("task of transformers", str(task), TASKS)
    config, unused = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, return_unused_kwargs=True,
                                                             **settings)
    if unused:
        raise unknown(f"setting of the configuration in {folder}", next(iter(unused)), config.to_dict())
    if task is not None:
        return _for_task(transformers, task, config, folder)
    name = name or next(iter(config.architectures or []), None)
    if name is None:
        raise InputError(f"config.json in {folder!r} names no architecture; add one to the specification, as in "
                         "?architecture=BertForSequenceClassification")
    architecture = _part(transformers, name)
    if not isinstance(architecture, type):
        raise unknown("architecture of transformers", name, [k for k in dir(transformers) if "For" in k])
    return architecture(config)


def _for_task(transformers: ModuleType, task: str, config: Any, folder: str) -> nn.Module:
    try:
        return _part(transformers, TASKS[task]).from_config(config)
    except ValueError as error:
        raise InputError(f"transformers has no {task} for the {type(config).__name__} in {folder!r}; choose another of "
                         f"{', '.join(TASKS)}") from error


def _part(transformers: ModuleType, name: str) -> Any:
    try:
        return getattr(transformers, name, None)
    except (ImportError, RuntimeError) as error:  # transformers imports its parts when they are asked for
        raise unusable("transformers", "text", error) from error
