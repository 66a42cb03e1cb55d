"""The same algorithms inside the trainers of transformers and Lightning."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from genmeasure.data.batches import Batches
from genmeasure.errors import InputError
from genmeasure.training.algorithm import Algorithm, get_algorithm
from genmeasure.training.constraints.layer_balls import LayerBalls
from genmeasure.training.context import Context
from genmeasure.training.loop import Settings, fine_tune
from genmeasure.training.penalties.distance import DistanceToStart
from genmeasure.training.probes.noise import Noise
from genmeasure.training.probes.uphill import Uphill

ALGORITHMS = {
    "plain": Algorithm(), "sam": get_algorithm("sam"), "nso": get_algorithm("nso", sigma=0.05),
    "layer-ball": Algorithm(constraint=LayerBalls(0.01, head_radius=0.5)),
    "nso with balls": Algorithm(probe=Noise(0.05, two_point=True), constraint=LayerBalls(0.01, head_radius=0.5)),
    "sam with a pull": Algorithm(probe=Uphill(0.1), penalty=DistanceToStart(0.1))}
SIZE, BATCH, RATE = 64, 16, 0.05


def data():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(SIZE, 6, generator=g)
    return x, (x[:, 0] * x[:, 1] > 0).long()


def network():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 2))


class Output(dict):
    def __getattr__(self, name):
        return self[name]


class Classifier(nn.Module):
    """What a Trainer asks of a model."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x, labels=None):
        logits = self.net(x)
        return Output(loss=None if labels is None else nn.functional.cross_entropy(logits, labels), logits=logits)


@pytest.fixture(scope="module")
def transformers(torchvision):
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def lightning(torchvision):
    return pytest.importorskip("pytorch_lightning")


def arguments(folder, **given):
    import transformers
    return transformers.TrainingArguments(
        folder, **{"per_device_train_batch_size": BATCH, "num_train_epochs": 3, "learning_rate": RATE, "optim": "sgd",
                   "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "report_to": [], "save_strategy": "no",
                   "use_cpu": True, "disable_tqdm": True, "seed": 3, **given})


def trainer(folder, algorithm, model=None, **given):
    import transformers

    from genmeasure.training.transformers_trainer import AlgorithmMixin

    class InOrder(AlgorithmMixin, transformers.Trainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    x, y = data()
    return InOrder(model or Classifier(), arguments(folder, **given), algorithm=algorithm,
                   train_dataset=[{"x": a, "labels": b} for a, b in zip(x, y, strict=True)])


def two_layers(lightning, optimizers=1):
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()
            self.automatic_optimization = optimizers == 1

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            made = [torch.optim.SGD(self.parameters(), lr=RATE) for _ in range(optimizers)]
            return made if optimizers > 1 else made[0]
    return Module()


def fit(algorithm, folder, epochs=3, optimizers=1, resume=None, **given):
    import pytorch_lightning as pl

    from genmeasure.training.lightning_callback import AlgorithmCallback
    module = two_layers(pl, optimizers)
    fitted = pl.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
                        enable_model_summary=False, default_root_dir=folder, enable_checkpointing=False,
                        callbacks=[AlgorithmCallback(algorithm, seed=3)], **given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning advises more workers
        fitted.fit(module, DataLoader(TensorDataset(*data()), BATCH), ckpt_path=resume)
    return fitted, module


def literal(algorithm, generators, accumulate=1):
    """Twin: the steps one after another, in a loop of its own."""
    net = network()
    ready = algorithm.prepare(Context.of(net))
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    x, y = data()
    step = 0
    for _ in range(3):
        for begin in range(0, SIZE, BATCH * accumulate):
            rows = slice(begin, begin + BATCH * accumulate)
            ready.probe(net, lambda rows=rows: nn.functional.cross_entropy(net(x[rows]), y[rows]), generators(step))
            if ready.penalty is not None:
                ready.penalty(net).backward()
            optimizer.step()
            if ready.constraint is not None:
                ready.constraint(net)
            step += 1
    return net


def seeded_by_step(step):
    return torch.Generator().manual_seed((3 << 32) + step)


def close(one, other):
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_transformers_trainer(transformers, name, tmp_path):
    fitted = trainer(tmp_path, ALGORITHMS[name])
    fitted.train()
    close(fitted.model.net, literal(ALGORITHMS[name], seeded_by_step))


@pytest.mark.parametrize("name", ["sam", "nso with balls"])
def test_transformers_trainer_accumulates_before_it_looks_around(transformers, name, tmp_path):
    fitted = trainer(tmp_path, ALGORITHMS[name], gradient_accumulation_steps=2)
    fitted.train()
    close(fitted.model.net, literal(ALGORITHMS[name], seeded_by_step, accumulate=2))
    assert fitted.state.log_history[-1]["train_loss"] == pytest.approx(0.6, abs=0.15)


def test_transformers_trainer_resumes(transformers, tmp_path):
    given = {"save_strategy": "epoch", "seed": 3}
    whole = trainer(tmp_path / "whole", ALGORITHMS["nso with balls"], **given)
    whole.train()
    resumed = trainer(tmp_path / "whole", ALGORITHMS["nso with balls"], **given)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["label-smoothing", "consistent-loss"])
def test_transformers_trainer_takes_the_algorithms_loss(transformers, name, tmp_path):
    from genmeasure.training.transformers_trainer import AlgorithmTrainer
    x, y = data()
    confusion = torch.tensor([[0.8, 0.2], [0.2, 0.8]])
    fitted = AlgorithmTrainer(Classifier(), arguments(tmp_path, num_train_epochs=1, per_device_train_batch_size=SIZE),
                              algorithm=name, confusion=confusion,
                              train_dataset=[{"x": a, "labels": b} for a, b in zip(x, y, strict=True)])
    fitted.train()
    expected = fine_tune(network(), name, Batches.from_arrays(x, y), confusion=confusion, settings=Settings(
        epochs=1, batch_size=SIZE, learning_rate=RATE, optimizer="sgd", momentum=0.0, device="cpu")).model
    close(fitted.model.net, expected)


def test_transformers_callback_enforces_a_constraint(transformers, tmp_path):
    from genmeasure.training.transformers_trainer import AlgorithmCallback
    model = Classifier()
    ready = ALGORITHMS["layer-ball"].prepare(Context.of(model))
    x, y = data()
    transformers.Trainer(model, arguments(tmp_path), callbacks=[AlgorithmCallback(ready)],
                         train_dataset=[{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]).train()
    distance = (model.net[0].weight - network()[0].weight).norm().item()
    assert distance == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_lightning(lightning, name, tmp_path):
    generator = seeded_by_step(0)
    fitted, module = fit(ALGORITHMS[name], tmp_path)
    close(module.net, literal(ALGORITHMS[name], lambda step: generator))
    assert type(fitted.optimizers[0]) is torch.optim.SGD


def test_lightning_start_is_that_before_a_checkpoint(lightning, tmp_path):
    fitted, _ = fit(ALGORITHMS["layer-ball"], tmp_path, epochs=1)
    fitted.save_checkpoint(tmp_path / "one.ckpt")
    _, module = fit(ALGORITHMS["layer-ball"], tmp_path, epochs=3, resume=str(tmp_path / "one.ckpt"))
    close(module.net, literal(ALGORITHMS["layer-ball"], seeded_by_step))


def error_of(call):
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


def test_errors_say_what_to_do(transformers, lightning, tmp_path):
    assert error_of(lambda: trainer(tmp_path, "early-stopping")).endswith("an EarlyStoppingCallback")
    assert error_of(lambda: fit("sam", tmp_path, accumulate_grad_batches=2)).endswith("use larger batches instead")
    assert error_of(lambda: fit("label-smoothing", tmp_path)).endswith("give the callback the rest")
    assert error_of(lambda: fit("sam", tmp_path, optimizers=2)).endswith("needs one, optimized by Lightning")

