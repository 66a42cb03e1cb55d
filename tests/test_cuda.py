"""A CUDA device gives what the CPU gives, and is left as it was found; skipped where there is none."""

from __future__ import annotations

import copy
import functools
import json
import math
import socket
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import small
import test_contract as contract
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import genmeasure as gm
from genmeasure import study
from genmeasure.checkpoints.match import fingerprint
from genmeasure.checkpoints.write import write
from genmeasure.cli import main
from genmeasure.curvature import memory
from genmeasure.curvature.products import hessian_product
from genmeasure.data.batches import Batches
from genmeasure.engine import LocalEngine, float32_products
from genmeasure.engine import ranks as ranks_module
from genmeasure.engine.ranks import Ranks
from genmeasure.plan import peak
from genmeasure.shared import Shared
from genmeasure.study import Request
from genmeasure.subject import Subject, SubjectFiles
from genmeasure.training.loop import fine_tune
from genmeasure.training.settings import Settings

DEVICE = "cuda"
NETWORKS = ("residual", "smooth", "chain", "keyword")
SOME = tuple(contract.quick(Request(*request)) for request in (
    ("hessian-trace",), ("hessian-trace", {"route": "hutchinson"}), ("hessian-trace", {"route": "forward"}),
    ("hessian-distance",), ("hessian-top",), ("noise-stability",), ("sharpness",)))
"""By every way of differentiation."""
if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)


@functools.cache
def shared(network: str, device: str, dtype: str = "float64") -> Subject:
    return contract.fresh(network, device=device, dtype=dtype)


def numbers(frame: pd.DataFrame) -> pd.DataFrame:
    keys = frame.assign(sigma=frame["sigma"].astype(str)).set_index(["measure", "layer", "sigma", "term"])
    return keys[["kind", "value", "stderr", "n"]]


def same_readings(found: pd.DataFrame, expected: pd.DataFrame, *, rel: float, drawn: float) -> None:
    """`rel` of what is exact, `drawn` of what is drawn; how far an iteration came follows rounding."""
    found, expected = numbers(found), numbers(expected)
    assert list(found.index) == list(expected.index)
    assert list(found["kind"]) == list(expected["kind"])
    for (key, ours), theirs in zip(found.iterrows(), expected.itertuples(), strict=True):
        exact = theirs.stderr == 0 and key[-1] not in contract.CHOSEN
        allowed = 1e-2 if key[-1] in contract.CONVERGENCE else rel if exact else drawn
        near = functools.partial(pytest.approx, rel=allowed, abs=1e-9, nan_ok=True)
        assert (ours["value"], ours["stderr"]) == (near(theirs.value), near(theirs.stderr)), key
        assert ours["n"] == theirs.n, key


@contract.each_request
@pytest.mark.parametrize("network", NETWORKS)
def test_readings_are_those_of_the_cpu(network, request_):
    found, expected = (study.read(shared(network, device), request_) for device in (DEVICE, "cpu"))
    same_readings(found, expected, rel=1e-8, drawn=1e-6)
    assert found["passes"].iloc[0] == pytest.approx(expected["passes"].iloc[0])


@contract.each_request
def test_everything_is_left_as_it_was_found_in_float32(request_):
    start, end = (model.to(DEVICE) for model in small.pair("residual"))
    end.block.weight.requires_grad_(False)
    end.stem.eval()
    end(small.images()[0].to(DEVICE)).sum().backward()

    def found() -> list:
        rounding = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        places = {p.device.type for model in (start, end) for p in (*model.parameters(), *model.buffers())}
        return [contract.snapshot(start, end), fingerprint({"device": torch.cuda.get_rng_state()}), rounding, places]
    before = found()
    subject = gm.subject(end, start, small.batches(), small.batches(seed=1), device=DEVICE)
    own = fingerprint(subject.state)
    readings = study.read(subject, request_)
    assert np.isfinite(readings["value"]).all() or request_.member.family == "bound"
    assert found() == before
    assert fingerprint({k: v.detach() for k, v in subject.model.state_dict().items()}) == own
    assert {v.device.type for v in subject.state.values()} == {DEVICE}


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_products_have_the_precision_of_float32_whatever_the_user_set(precision):
    x, w = (torch.randn(64, 64, 8, 8, generator=torch.Generator().manual_seed(n)) for n in (0, 1))

    def error() -> float:
        exact = F.conv2d(x.double(), w[..., :3, :3].double())
        return ((F.conv2d(x.to(DEVICE), w[..., :3, :3].to(DEVICE)).cpu() - exact).norm() / exact.norm()).item()

    def product_error() -> float:
        a, b = x.flatten(1), w.flatten(1).T
        return ((a.to(DEVICE) @ b.to(DEVICE)).cpu() - a.double() @ b.double()).norm().item() / (
            a.double() @ b.double()).norm().item()
    places = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = precision
        outside = error(), product_error()
        with float32_products():
            assert max(error(), product_error()) < 2e-6
        assert (error(), product_error()) == pytest.approx(outside, rel=0.5)
        assert [place.fp32_precision for place in places] == [precision] * 2
        assert (min(outside) > 1e-5) == (precision == "tf32")
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


def off_by(network: str, request_: Request, dtype: str) -> float:
    """The largest difference of readings in this precision to those in float64, relative to the largest of these."""
    found, exact = (study.read(contract.fresh(network, device=DEVICE, dtype=d), request_) for d in (dtype, "float64"))
    return (found["value"] - exact["value"]).abs().max() / exact["value"].abs().max()


NOISE = Request("noise-stability", {"sigmas": (0.1, 0.3), "max_passes": 1})


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("dtype", ["tf32", "bfloat16"])
def test_fewer_bits_change_little(network, dtype):
    assert off_by(network, Request("gap"), dtype) <= 0.02
    assert off_by(network, NOISE, dtype) <= 0.1


@pytest.mark.parametrize("network", NETWORKS)
def test_tf32_takes_derivatives(network):
    assert off_by(network, Request("hessian-trace", {"route": "hutchinson", "max_passes": 4}), "tf32") <= 0.05


def test_vectors_that_the_host_keeps_give_the_same_eigenvalues(monkeypatch, caplog):
    request_ = Request("hessian-top", {"k": 2, "max_products": 20})
    expected = study.read(contract.fresh("smooth", device=DEVICE, dtype="float64"), request_)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0 if device.type == DEVICE else 2**30)
    with caplog.at_level("INFO", "genmeasure"):
        found = study.read(contract.fresh("smooth", device=DEVICE, dtype="float64"), request_)
    assert "bytes on cpu" in caplog.text
    same_readings(found, expected, rel=1e-8, drawn=1e-6)


def test_activations_that_the_host_keeps_give_the_same_products():
    subject = shared("residual", DEVICE)
    plain, offloaded = (replace(subject, shared=Shared(), offload=offload).risk for offload in (False, True))
    vectors = {k: torch.ones_like(w) for k, w in plain.weights.items()}
    expected, found = hessian_product(plain, vectors), hessian_product(offloaded, vectors)
    assert all(torch.allclose(found[k], expected[k], rtol=1e-10, atol=1e-12) for k in expected)


class Attending(nn.Module):
    """Fused attention over four rows of nine pixels, in forward pass and, unless told otherwise, backward."""

    def __init__(self):
        super().__init__()
        self.into, self.out, self.head = nn.Linear(9, 3 * 16), nn.Linear(16, 16), nn.Linear(16, small.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.into(x.reshape(len(x), 4, 9)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(torch.tanh(self.out(mixed)).mean(1))


class Encoding(nn.Module):
    """torch's own encoder layer, whose fast path has no derivative at all."""

    def __init__(self):
        super().__init__()
        self.into, self.head = nn.Linear(9, 16), nn.Linear(16, small.CLASSES)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, 0.0, "gelu", batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.into(x.reshape(len(x), 4, 9))).mean(1))


def moved(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A model with drawn weights, and the same after noise."""
    draws, end = torch.Generator().manual_seed(0), copy.deepcopy(model)
    for start, other in zip(model.parameters(), end.parameters(), strict=True):
        with torch.no_grad():
            start.copy_(0.3 * torch.randn(start.shape, generator=draws))
            other.copy_(start + 0.1 * torch.randn(start.shape, generator=draws))
    return model, end


def test_fused_attention_has_no_second_derivative_of_its_own():
    model, x = moved(Attending())[1].to(DEVICE), small.images()[0].to(DEVICE)
    (slope,) = torch.autograd.grad(model(x).square().sum(), model.into.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="derivative for .* is not implemented"):
        torch.autograd.grad(slope.square().sum(), model.into.weight)


@pytest.mark.parametrize("request_", SOME, ids=lambda r: f"{r.name}-{r.parameters.get('route', '')}")
@pytest.mark.parametrize("kind", [Attending, Encoding])
def test_attention_is_measured_without_fused_kernels(kind, request_):
    start, end = moved(kind())

    def reading(device: str, dtype: str) -> pd.DataFrame:
        return study.read(gm.subject(end, start, small.batches(), small.batches(seed=1), device=device, dtype=dtype),
                          request_)
    expected = reading("cpu", "float64")
    same_readings(reading(DEVICE, "float64"), expected, rel=1e-8, drawn=1e-6)
    rows = numbers(reading(DEVICE, "float32"))
    assert list(rows.index) == list(numbers(expected).index)
    assert np.isfinite(rows["value"].astype(float)).all()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("request_", SOME, ids=lambda r: f"{r.name}-{r.parameters.get('route', '')}")
def test_an_encoder_of_transformers_is_measured(torchvision, attention, request_):
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start, end = moved(transformers.BertForSequenceClassification(transformers.BertConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=12, num_labels=small.CLASSES, attn_implementation=attention)))
    draws = torch.Generator().manual_seed(0)
    mask = (torch.arange(8) < torch.randint(3, 9, (16, 1), generator=draws)).long()
    batch = {"input_ids": torch.randint(30, (16, 8), generator=draws), "attention_mask": mask,
             "labels": torch.randint(small.CLASSES, (16,), generator=draws)}
    data = Batches([{k: v[rows] for k, v in batch.items()} for rows in (slice(8), slice(8, 16))])

    def reading(device: str, dtype: str = "float64") -> pd.DataFrame:
        return study.read(gm.subject(end, start, data, data, device=device, dtype=dtype), request_)
    same_readings(reading(DEVICE), reading("cpu"), rel=1e-8, drawn=1e-6)
    assert np.isfinite(reading(DEVICE, "float32")["value"]).all()


def test_memory_of_the_device_is_what_a_plan_tells():
    with peak(torch.device(DEVICE)) as most:
        torch.empty(2**24, dtype=torch.uint8, device=DEVICE)
    assert most[0] >= 2**24


# training

class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(36, 16), nn.Linear(16, small.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(torch.relu(self.inner(x.flatten(1))), 0.2, self.training))


def settings(name: str, **more: object) -> Settings:
    own = {"optimizer": "sgd", "momentum": 0.0} if name == "bsam" else {}
    return Settings(**{"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "device": DEVICE, **own, **more})


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["plain", "sam", "asam", "nso", "layer-ball", "self-labeling", "cr-sam", "bsam", "ema",
                                  "swa", "lora", "mixup", "zeroth-order", "self-adaptive-training",
                                  "adversarial-training"])
def test_an_algorithm_trains(name, precision):
    start = small.pair("residual")[0]
    before = [contract.snapshot(start), fingerprint({"device": torch.cuda.get_rng_state()})]
    found = fine_tune(start, name, small.batches(), small.batches(seed=1), settings=settings(
        name, precision=precision))
    assert [contract.snapshot(start), fingerprint({"device": torch.cuda.get_rng_state()})] == before
    assert {p.device.type for p in found.model.parameters()} == {DEVICE}
    assert all(math.isfinite(epoch.training_loss) for epoch in found.history)
    assert not torch.equal(found.model.head.weight.cpu(), start.head.weight)


class Killed(Exception):
    pass


@pytest.mark.parametrize(("name", "precision"), [("nso", "float32"), ("sam", "float16"), ("bsam", "float32")])
def test_a_run_that_was_broken_off_goes_on_to_the_same_bits(name, precision, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = Dropping()
    data, how = small.batches(), settings(name, precision=precision)
    whole = fine_tune(start, name, data, settings=how)

    def killing(record: dict) -> None:
        if record["step"] == 3:
            raise Killed
    with pytest.raises(Killed):
        fine_tune(start, name, data, settings=how, folder=tmp_path, save_every=2, log_every=1, loggers=[killing])
    torch.cuda.manual_seed(99)
    resumed = fine_tune(start, name, data, settings=how, folder=tmp_path, save_every=2, log_every=1)
    assert all(torch.equal(v, resumed.model.state_dict()[k]) for k, v in whole.model.state_dict().items())


# the command line, and several processes

@pytest.fixture
def files(tmp_path) -> list[str]:
    start, end = small.pair("residual")
    x, y = small.images()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    for name, model in (("start", start), ("end", end)):
        write(tmp_path / f"{name}.safetensors", model.state_dict())
    return ["--start", str(tmp_path / "start.safetensors"), "--model", f"{small.FILE}:residual", "--train",
            str(tmp_path / "data.npz")]


def audit(files: list[str], out: str, device: str, *more: str) -> pd.DataFrame:
    wanted = [f"--measure={name}" for name in ("distance", "hessian-trace", "noise-stability:max_passes=2")]
    folder = files[1].removesuffix("start.safetensors")
    assert main(["audit", *files, "--end", f"{folder}end.safetensors", "--dtype", "float64", "--device", device,
                 *wanted, "--out", f"{folder}{out}", *more]) == 0
    return pd.read_csv(f"{folder}{out}/readings.csv", keep_default_na=False).assign(
        value=lambda f: f["value"].astype(float), stderr=lambda f: f["stderr"].astype(float))


def test_the_command_line_audits(files):
    same_readings(audit(files, "there", DEVICE), audit(files, "here", "cpu"), rel=1e-8, drawn=1e-6)


def test_worker_processes_share_the_device(files, tmp_path):
    _, start, _, model, _, data = files
    subjects = [SubjectFiles(f"number {n}", model, start, str(tmp_path / "end.safetensors"), data, device=DEVICE,
                             dtype="float64") for n in range(2)]
    one, two = (study.run(subjects, SOME[:2], tmp_path / f"out{n}", engine=LocalEngine(n)) for n in (1, 2))
    assert set(two["error"]) == {""}
    same_readings(two, one, rel=1e-8, drawn=1e-6)


@pytest.fixture
def alone(monkeypatch):
    """As torchrun starts one process of one, which by itself would not make a group."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost",
                        "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(ranks_module, "asked_for", lambda: True)


def test_sums_travel_by_nccl(alone, monkeypatch):
    left = []
    barrier = ranks_module.dist.monitored_barrier
    monkeypatch.setattr(ranks_module.dist, "monitored_barrier", lambda *a, **k: left.append(barrier(*a, **k)))
    with ranks_module.joined(DEVICE) as engine:
        assert isinstance(engine, Ranks)
        assert ranks_module.dist.get_backend_config() == "cpu:gloo,cuda:nccl"

        def large(batch) -> dict:
            return {"sum": batch.inputs[0].to(engine.device).sum() * torch.ones(2**15, device=engine.device)}
        data = small.batches()
        found, expected = (e.sum(large, data)["sum"] for e in (engine, LocalEngine()))
        assert found.device.type == DEVICE
        torch.testing.assert_close(found, expected)
        subjects = [contract.fresh("residual", device=DEVICE, dtype="float64", engine=e)
                    for e in (engine, LocalEngine())]
        for request in SOME:
            ranks, local = (study.read(subject, request) for subject in subjects)
            same_readings(ranks, local, rel=1e-8, drawn=1e-6)
    assert left == [None]  # nobody left in a hurry


def test_the_command_line_trains_by_nccl(files, alone, monkeypatch, tmp_path):
    how = ["--algorithm", "nso", "--epochs", "2", "--device", DEVICE, "--seed", "0"]
    assert main(["train", *files, *how, "--out", str(tmp_path / "ranks")]) == 0
    monkeypatch.setattr(ranks_module, "asked_for", lambda: False)
    assert main(["train", *files, *how, "--out", str(tmp_path / "local")]) == 0
    ranks, local = ([json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
                    for name in ("ranks", "local"))
    assert [r["training_loss"] for r in ranks] == pytest.approx([r["training_loss"] for r in local], rel=1e-3)
