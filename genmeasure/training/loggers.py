"""Where the figures of a run go while it lasts.

A logger is a function of a record, a dict with plain values: of every epoch (`Epoch.record` with "epoch" and "step"),
and of every n-th step where that is asked for ("epoch", "step", "loss", "learning_rate"). Steps count from 1 over the
whole run; figures that are not known are None. Any function of a dict will do.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from genmeasure.engine import QUIET
from genmeasure.errors import InputError

Logger = Callable[[dict[str, Any]], None]


def finite(record: dict[str, Any]) -> dict[str, Any]:
    """With None in place of numbers that are not finite, which JSON has no word for."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record.items()}


class JsonLines:
    """One line of JSON for each record, at the end of a file."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def __call__(self, record: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def keep(self, steps: int) -> None:
        """Drop what was written after so many steps, perhaps in part: a run goes on from there."""
        if not self.path.exists():
            return
        whole = [line for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True) if line[-1] == "\n"]
        kept = "".join(line for line in whole if json.loads(line)["step"] <= steps)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text(kept, encoding="utf-8")
        os.replace(temporary, self.path)


class TensorBoard:
    """Scalars for TensorBoard in `folder`; needs the package tensorboard.

    A run that goes on hides what an earlier part of it wrote after the place where it goes on.
    """

    def __init__(self, folder: str | Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError("TensorBoard was asked for, but the package tensorboard is not there; "
                             "pip install genmeasure[tensorboard]") from error
        self.folder, self._open, self._writer = str(folder), SummaryWriter, None

    def __call__(self, record: dict[str, Any]) -> None:
        if self._writer is None:
            self._writer = self._open(self.folder, purge_step=record["step"])
        for name, value in record.items():
            if isinstance(value, (int, float)) and name not in ("step", "number"):
                self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()


class ProgressBar:
    """On a terminal: steps done, time left and the mean loss of the epoch so far, for whatever takes two seconds."""

    INTERVAL = 0.5
    """Seconds between two looks at the loss, which on an accelerator wait for it to be computed."""

    def __init__(self, steps: int, done: int = 0, *, shown: bool = True):
        self._bar = tqdm(total=steps, initial=done, desc="steps", delay=2, leave=False,
                         disable=True if os.environ.get(QUIET) or not shown else None)
        self._shown = 0.0

    def __call__(self, epoch: int, loss: Callable[[], float]) -> None:
        """After one more step."""
        self._bar.update()
        now = time.monotonic()
        if not self._bar.disable and now - self._shown > self.INTERVAL:
            self._shown = now
            self._bar.set_postfix(epoch=epoch, loss=f"{loss():.4g}", refresh=False)

    def close(self) -> None:
        self._bar.close()
