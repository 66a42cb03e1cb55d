"""Models that fully_shard spread over two ranks: the readings of the whole model, which is left as it was."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import small
import torch
import torch.distributed as dist
from several import on_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

import genmeasure as gm
from genmeasure.checkpoints.sharded import WHOLE
from genmeasure.checkpoints.write import write
from genmeasure.data.batches import Batches
from genmeasure.engine.sharded import Sharded
from genmeasure.errors import InputError
from genmeasure.registry import bound, measure
from genmeasure.study import Request, applicable, everything, run

pytestmark = [pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
              pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor:UserWarning")]

WANTED = (("distance", {}), ("norm", {}), ("gap", {}), ("margin", {}),
          ("noise-stability", {"sigmas": (0.01, 0.1), "max_passes": 2}),
          ("noise-stability", {"sigmas": (0.1,), "per_layer": True, "covariance": "norm", "one_sided": True,
                               "max_passes": 2}),
          ("noise-stability", {"sigmas": (0.1,), "covariance": "weight", "max_passes": 1}),
          ("hessian-trace", {"route": "forward", "max_passes": 2}))


class Attention(nn.Module):
    """Rows of an image attend to each other; the weight of `twice` is also read outside of the module that holds it."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.attention, self.twice = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 6)
        self.head = nn.Linear(6, small.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(x.squeeze(1))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = torch.nn.functional.linear(torch.tanh(self.twice(x)), self.twice.weight)
        return self.head(x.mean(1))


def pair(network: str) -> tuple[nn.Module, nn.Module]:
    """Start and end in evaluation mode and float64."""
    if network != "attention":
        return tuple(model.double().eval() for model in small.pair(network))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Attention().double().eval(), Attention().double().eval()


def shard(model: nn.Module, network: str) -> nn.Module:
    """Parts that gather by themselves, among them a pair of modules and single layers, and the rest as a whole."""
    parts = {"residual": lambda: ([model.stem, model.stem_norm], model.block),
             "attention": lambda: (model.block, model.attention),
             "smooth": lambda: (),
             "keyword": lambda: (model.inner.block, model.inner)}
    for part in parts[network]():
        fully_shard(part)
    return fully_shard(model, reshard_after_forward=network != "smooth")


def subject(model: nn.Module, start, network: str, **given) -> gm.Subject:
    key = "pixel_values" if network == "keyword" else None
    return gm.subject(model, start, small.batches(13, batch_size=4, key=key), small.batches(7, seed=1, key=key),
                      device="cpu", **{"dtype": "float64", **given})


def readings(one: gm.Subject) -> list[pd.DataFrame]:
    return [gm.measure(one, name, **parameters) for name, parameters in WANTED]


def compare(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    columns = [c for c in expected if c not in ("value", "stderr", "seconds", "passes", "params")]
    pd.testing.assert_frame_equal(found[columns], expected[columns])
    largest = expected["value"].abs().max() if expected["measure"].eq("hessian-trace").all() else 1e-4
    for column in ("value", "stderr", "passes"):  # second differences of outputs over sigma² enlarge their rounding
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-10, atol=1e-10 * largest)
    told, known = (json.loads(frame["params"].iloc[0]).get("found", {}) for frame in (found, expected))
    assert told.pop("read")["end"][-1].startswith("sharded over 2 ranks")
    known.pop("read", None)
    assert told.keys() == known.keys()
    assert all(told[k] == v for k, v in known.items() if not isinstance(v, dict))


def held(model: nn.Module) -> dict[str, torch.Tensor]:
    """What this rank has of every weight, and every buffer."""
    return {k: (v.to_local() if hasattr(v, "to_local") else v).clone() for k, v in model.state_dict().items()}


def slopes(model: nn.Module, network: str) -> dict[str, torch.Tensor]:
    """Whole gradients of the loss of one batch."""
    batch = next(iter(small.batches(4, key="pixel_values" if network == "keyword" else None)))
    inputs = batch.inputs["pixel_values"] if network == "keyword" else batch.inputs[0]
    outputs = model(inputs.double())
    nn.functional.cross_entropy(getattr(outputs, "logits", outputs), batch.targets).backward()
    return {k: p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
            for k, p in model.named_parameters() if p.grad is not None}


def test_every_member_that_takes_sharded_models_is_compared():
    assert {m.name for m in (*measure, *bound) if m.sharded is not None} == {name for name, _ in WANTED}


@pytest.mark.parametrize("network", ["residual", "attention", "smooth", "keyword"])
def test_readings_are_those_of_the_whole_model(network):
    expected = readings(subject(pair(network)[1], pair(network)[0], network))
    learned = slopes(pair(network)[1], network)

    def work(engine):
        start, end = pair(network)
        shard(end, network)
        before, needed = held(end), [p.requires_grad for p in end.parameters()]
        given = shard(start, network) if network == "smooth" else start.state_dict()
        found = readings(subject(end, given, network))
        after = held(end)
        kept = before.keys() == after.keys() and all(torch.equal(v, after[k]) for k, v in before.items())
        kept &= needed == [p.requires_grad for p in end.parameters()]
        return found, kept, slopes(end, network)
    for result in on_ranks(2, work):
        assert not isinstance(result, str), result
        found, kept, trained = result
        for one, other in zip(found, expected, strict=True):
            compare(one, other)
        assert kept
        torch.testing.assert_close(trained, learned)


def test_a_study_of_a_sharded_model_leaves_out_what_it_cannot_take(tmp_path):
    start, end = pair("residual")
    write(tmp_path / "start.safetensors", start.state_dict())
    whole = subject(end, start, "residual")

    def work(engine):
        one = subject(shard(pair("residual")[1], "residual"), str(tmp_path / "start.safetensors"), "residual")
        requests = applicable(one, [*everything(), Request("hessian-trace", {"route": "forward", "max_passes": 1})])
        return run([one], [r for r in requests if r.name != "noise-stability"], tmp_path / "out", engine=engine)
    (first, second) = on_ranks(2, work)
    pd.testing.assert_frame_equal(first, second)
    assert not first["error"].any()
    assert sorted(first["measure"].unique()) == ["distance", "gap", "hessian-trace", "margin", "norm"]
    np.testing.assert_allclose(first["value"][first["measure"] == "distance"], gm.measure(whole, "distance")["value"],
                               rtol=1e-10, atol=1e-14)


def test_a_float32_checkpoint_is_the_start_of_a_float64_model():
    start, end = (model.float() for model in pair("residual"))
    expected = gm.measure(subject(end, start, "residual"), "distance")

    def work(engine):
        start, end = (model.float() for model in pair("residual"))
        return gm.measure(subject(shard(end.double(), "residual"), start.state_dict(), "residual"), "distance")
    for found in on_ranks(2, work):
        compare(found, expected)


def test_every_rank_runs_every_batch_and_none_goes_on_alone():
    data = Batches.from_arrays(torch.arange(14.0, dtype=torch.float64).reshape(7, 2), torch.arange(7), batch_size=3)

    def work(engine):
        engine, ran, failures = Sharded(torch.device("cpu")), [], []

        def gathering(batch):
            whole = torch.ones(1)
            dist.all_reduce(whole)  # hangs, or meets another message, where a rank is missing
            ran.append(len(batch))
            return whole

        def rows(batch):
            return batch.inputs[0] * gathering(batch)

        def wrong(batch):
            gathering(batch)
            if 5 in batch.rows:
                raise InputError("example 5 came; take another")
            return batch.targets.sum()
        found = [engine.examples(rows, data), engine.sum(lambda b: rows(b).sum(0), data),
                 engine.batch_sums(lambda b: rows(b).sum(0), data)]
        for _ in range(2):
            try:
                engine.sum(wrong, data)
            except InputError as error:
                failures.append(str(error))
        return found, ran, failures, engine.sum(lambda b: b.targets.sum(), data).item()
    x = torch.arange(14.0, dtype=torch.float64).reshape(7, 2)
    for found, ran, failures, total in on_ranks(2, work):
        sums = torch.stack([part.sum(0) for part in x.split(3)])
        torch.testing.assert_close(found, [2 * x, 2 * x.sum(0), 2 * sums], rtol=1e-14, atol=0)
        assert len(ran) == 3 * 3 + 2 * 2
        assert min(ran) == 1
        assert failures == ["example 5 came; take another"] * 2
        assert total == 21


def refused(what: str) -> None:
    """Raises what a sharded model is refused with."""
    start, end = pair("residual")
    if what == "other means":
        end.head.weight = nn.Parameter(distribute_tensor(end.head.weight.detach(), init_device_mesh("cpu", (2,)),
                                                         [Shard(1)]))
        subject(end, start, "residual")
    if what == "first generation":
        subject(FullyShardedDataParallel(end, device_id=torch.device("cpu")).eval(), start, "residual")
    if what == "tensor parallel":
        mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data", "tensor"))
        end.head.weight = nn.Parameter(distribute_tensor(end.head.weight.detach(), mesh["tensor"], [Shard(0)]))
        end.head.bias = nn.Parameter(distribute_tensor(end.head.bias.detach(), mesh["tensor"], [Shard(0)]))
        subject(fully_shard(end, mesh=mesh["data"]), start, "residual")
    if what == "training":
        subject(shard(end, "residual").train(), start, "residual")
    if what == "cast":
        subject(shard(end.float(), "residual"), start, "residual")
    if what == "init":
        subject(shard(end, "residual"), start, "residual", init=start.state_dict())
    if what == "sampler":
        gm.subject(shard(end, "residual"), start, small.batches(5, seed=dist.get_rank()), device="cpu")
    if what == "lower precision":
        start, end = pair("attention")
        fully_shard(end, mp_policy=MixedPrecisionPolicy(param_dtype=torch.float32))
        gm.measure(subject(end, start, "attention"), "noise-stability")
    one = subject(shard(end, "residual"), start, "residual")
    if what == "member":
        gm.measure(one, "hessian-trace")
    if what == "derivative":
        one.risk.gradient()


@pytest.mark.parametrize(("what", "end"), [
    ("other means", f"shard it by torch.distributed.fsdp.fully_shard alone, or {WHOLE}"),
    ("first generation", f"shard it by torch.distributed.fsdp.fully_shard alone, or {WHOLE}"),
    ("tensor parallel", f"over all ranks, without tensor parallelism, or {WHOLE}"),
    ("training", "it cannot be copied, so call its eval() first"),
    ("cast", "cast it before fully_shard, or leave dtype out"),
    ("init", "leave init out, and the head is measured from the start or from zero"),
    ("sampler", "without a DistributedSampler: genmeasure cuts the batches itself"),
    ("lower precision", "by fully_shard without a param_dtype in its MixedPrecisionPolicy"),
    ("member", "such a model takes distance, gap, hessian-trace with route=forward, margin, noise-stability, norm; for "
               f"the others {WHOLE}"),
    ("derivative", f"take what needs forward passes alone, or {WHOLE}"),
])
def test_what_cannot_be_done_is_refused(what, end):
    def work(engine):
        try:
            refused(what)
        except InputError as error:
            return error
    for error in on_ranks(2, work):
        assert isinstance(error, InputError), error
        assert str(error).endswith(end), error
