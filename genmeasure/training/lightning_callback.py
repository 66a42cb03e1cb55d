"""Fine-tuning algorithms inside a Lightning `Trainer`."""

from __future__ import annotations

from typing import Any

from torch import Generator

from genmeasure.errors import InputError
from genmeasure.training.algorithm import Algorithm, get_algorithm
from genmeasure.training.algorithm_optimizer import AlgorithmOptimizer
from genmeasure.training.context import Context
from genmeasure.training.losses.cross_entropy import CrossEntropy
from genmeasure.training.probes.here import Here

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError:
    from pytorch_lightning import Callback, LightningModule, Trainer


class AlgorithmCallback(Callback):
    """Carries out the probe, penalty, constraint and average of an algorithm around the module's own optimizer.

    algorithm: an `Algorithm` or its registered name. head: path of the module put on for the new task in the
    `LightningModule`, by default its last linear or convolutional one. seed: of the probe's draws. The weights that
    the module has when `fit` is called are the start, also where `fit` then takes up a checkpoint.
    The loss is what `training_step` returns; a loss of the package is called there.
    Raises `InputError` for several optimizers, for manual optimization, and, where the gradient is taken more than
    once, for accumulation or 16-bit precision with a scaler, which Lightning carries out outside the optimizer's step.
    """

    def __init__(self, algorithm: Algorithm | str, *, head: str | None = None, seed: int = 0):
        self.algorithm, self.head, self.seed = get_algorithm(algorithm), head, seed
        self.context: Context | None = None
        self.optimizer: AlgorithmOptimizer | None = None
        self._loaded: dict[str, Any] = {}
        if not isinstance(self.algorithm.loss, CrossEntropy):
            raise InputError(f"an algorithm with the loss {type(self.algorithm.loss).__name__} came for a Lightning "
                             "callback; call that loss in training_step, and give the callback the rest")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            # before a checkpoint is taken up
            self.context = Context.of(pl_module, head=self.head, epochs=trainer.max_epochs)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not pl_module.automatic_optimization or len(trainer.optimizers) != 1:
            raise InputError(f"a module with {len(trainer.optimizers)} optimizers and automatic_optimization="
                             f"{pl_module.automatic_optimization} came; the callback needs one, optimized by Lightning")
        if not isinstance(self.algorithm.probe, Here):
            if trainer.accumulate_grad_batches != 1:
                raise InputError(f"accumulate_grad_batches={trainer.accumulate_grad_batches} came with an algorithm "
                                 "that takes several gradients of one step; use larger batches instead")
            if getattr(trainer.precision_plugin, "scaler", None) is not None:
                raise InputError(f"precision={trainer.precision!r} came with an algorithm that takes several gradients "
                                 "of one step; use precision='bf16-mixed'")
        if isinstance(trainer.optimizers[0], AlgorithmOptimizer):
            raise InputError("two algorithms came for one optimizer; combine their pieces in one Algorithm")
        generator = Generator(pl_module.device).manual_seed((self.seed << 32) + trainer.global_step)
        self.optimizer = AlgorithmOptimizer(trainer.optimizers[0], pl_module, self.algorithm,
                                            context=self.context.to(pl_module.device), generator=generator)
        for place, piece in self.optimizer.algorithm.pieces().items():
            if place in self._loaded:
                piece.load(self._loaded[place])
        trainer.strategy.optimizers = [self.optimizer]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.optimizer.begin_epoch(trainer.current_epoch + 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.optimizer.begin_epoch(trainer.current_epoch + 1)
        trainer.strategy.optimizers = [self.optimizer.optimizer]

    def state_dict(self) -> dict[str, Any]:
        if self.optimizer is None:
            return {}
        return {place: state for place, piece in self.optimizer.algorithm.pieces().items() if (state := piece.state())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict
