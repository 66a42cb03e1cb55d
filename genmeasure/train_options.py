"""The options of `genmeasure train`, without importing torch."""

from __future__ import annotations

import argparse

SETTINGS = {
    "epochs": (int, 30, "passes over the training data"),
    "learning_rate": (float, 1e-3, "the largest"),
    "head_factor": (float, 1.0, "times which the head's learning rate is larger"),
    "batch_size": (int, 32, "examples per step"),
    "optimizer": (str, "adam", "adam, amsgrad, adamw, nadam, radam, rmsprop, sgd or nesterov"),
    "momentum": (float, 0.9, "of sgd, nesterov and rmsprop"),
    "betas": (float, (0.9, 0.999), "of adam and its kin"),
    "epsilon": (float, 1e-8, "of adam and its kin and of rmsprop"),
    "weight_decay": (float, 0.0, "of the optimizer"),
    "schedule": (str, "constant", "constant, cosine, linear, step or plateau"),
    "schedule_by": (str, "epoch", "whether it changes by epoch or by step"),
    "warm_up": (float, 0.0, "epochs in which the learning rate rises before the schedule begins"),
    "step_epochs": (int, 10, "epochs per step of the schedule step; epochs that plateau waits"),
    "step_factor": (float, 0.1, "of the learning rate at each step, for step and plateau"),
    "final_factor": (float, 0.0, "of the learning rate at the end, for cosine and linear"),
    "clip": (float, None, "upper limit of the gradient's norm; no limit if left out"),
    "accumulate": (int, 1, "parts in which each batch is carried through the network"),
    "precision": (str, "float32", "float32, bfloat16 or float16"),
    "augment": (str, "none", "drawn anew for every image in every step: none, crop, flip or crop-flip"),
    "select": (str, "last", "the epoch to keep: last, or the one with the best validation loss or error"),
    "patience": (int, None, "epochs without a new best after which training ends; goes on if left out"),
}
"""Settings by name: type, default, help."""


def add_train_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--start", required=True, help="pretrained start, as for audit")
    sub.add_argument("--model", required=True, help="as for audit")
    sub.add_argument("--train", required=True, help="training data, as for audit")
    sub.add_argument("--validation", help="validation data, likewise")
    sub.add_argument("--head", help="module path of the head, which the start may have in another shape")
    sub.add_argument("--algorithm", default="plain", metavar="NAME[:key=value,...]",
                     help="see `genmeasure list algorithm`")
    sub.add_argument("--noise", metavar="KIND[:key=value,...]", help="make training labels wrong first, such as "
                     "symmetric:rate=0.4; see `genmeasure list noise`. Algorithms that correct noise are told how")
    sub.add_argument("--confusion", metavar="RATE|FILE", help="of the noise that is in the training labels already: "
                     "the rate of symmetric noise, or a .npy or .csv file with P(given | true), true labels in rows")
    settings = sub.add_argument_group("settings")
    for name, (kind, default, text) in SETTINGS.items():
        pair = {"nargs": 2} if isinstance(default, tuple) else {}
        settings.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=text, **pair)
    sub.add_argument("--save-every", type=int, metavar="STEPS", help="save the state of the run after so many steps, "
                     "besides the end of each epoch")
    sub.add_argument("--log", action="append", metavar="NAME", help="where figures go besides metrics.jsonl: "
                     "tensorboard; repeat for more")
    sub.add_argument("--log-every", type=int, metavar="STEPS", help="figures of every so many steps too")
