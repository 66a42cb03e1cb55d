"""Each measure's time per forward-backward pass and peak memory on networks of usual sizes, and other tools' traces.

The networks are made from their configurations, with random weights and inputs: costs hardly depend on them, except
that of what is drawn until it is precise, so seconds are divided by the passes that they took. Of `seconds per pass`
`ours` is for the equal of one forward-backward pass over the data, `theirs` a plain one; of `memory` the peaks in MiB
of a measure and of a gradient, on a CPU those of the process, which hands little back in between. Every measure runs
once on two examples before it is timed. What cannot be carried out is left out, with the reason. Every network has
`--minutes`, of which `KEPT_FOR_OTHERS` waits for the other tools, and a measure `OF_WHAT_IS_LEFT` of what is left of
the rest; one that is not through by then is broken off and has its row from the passes it made. `--minutes 0.9` keeps a
run of all four within four minutes.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from harness import Row, Setting, Skipped, hide_broken_torchvision, main, say, synchronize
from networks import Case, make_case
from torch import Tensor, nn
from traces import against_curvlinops, total_against_probes

from genmeasure.plan import peak
from genmeasure.risk import GRADIENT
from genmeasure.shared import Shared
from genmeasure.study import Request, read
from genmeasure.subject import Subject

MEASURED = (Request("gap"), Request("noise-stability", {"sigmas": (0.001,), "rtol": 0.5, "max_passes": 1}),
            Request("hessian-trace", {"route": "hutchinson", "rtol": 0.5, "layer_rtol": 1e9, "max_passes": 2}),
            Request("hessian-top", {"k": 1, "rtol": 0.5, "max_products": 8}))
MEASURED_ON_FEW = (Request("hessian-trace", {"rtol": 0.5, "layer_rtol": 1e9, "max_passes": 2}),
                   Request("hessian-distance"), Request("sharpness", {"steps": 1, "rtol": 0.5, "max_passes": 1}),
                   Request("hessian-trace", {"route": "forward", "rtol": 0.5, "layer_rtol": 1e9, "max_passes": 1}))
"""What costs tens of passes or more, on so many examples that a pass still fills the device."""
RTOL, QUICK_RTOL, PROBES = 0.05, 0.5, 3
MEBIBYTE = 2**20
KEPT_FOR_OTHERS, OF_WHAT_IS_LEFT, LEAST = 0.35, 1 / 2, 1.0
"""Parts of a network's time and of what is left of it, and seconds below which nothing is begun."""
LEFT_OUT: list[str] = []


class OutOfTime(Exception):
    """A measure's share of the time is over."""


@contextlib.contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Raises `OutOfTime` inside the block when so many seconds are over; None is no limit."""
    if seconds is None or not hasattr(signal, "setitimer"):  # Windows
        yield
        return

    def over(*_: object) -> None:
        raise OutOfTime(f"not through in {seconds:.0f} s, its share of --minutes")
    if seconds < LEAST:
        raise OutOfTime("nothing is left of its share of --minutes")
    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def left(until: float | None, part: float = 1.0) -> float | None:
    return None if until is None else part * (until - time.monotonic())


def leave_out(what: str, reason: BaseException) -> None:
    kind = "" if isinstance(reason, (OutOfTime, Skipped)) else f"{type(reason).__name__}: "
    LEFT_OUT.append(f"{what}: {kind}{' '.join(str(reason).split())[:300]}")
    say(f"  left out: {LEFT_OUT[-1]}")


def clean(device: torch.device) -> None:
    """Memory that nothing holds any more is handed back, so that peaks do not depend on the order."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class Logits(nn.Module):
    """A network of transformers as a function of one tensor; of a language model the logits behind the last token."""

    def __init__(self, inner: nn.Module, name: str, last: bool = False):
        super().__init__()
        self.inner, self.name, self.last = inner, name, last

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(**{self.name: x}).logits
        return logits[:, -1] if self.last else logits


@dataclass(frozen=True)
class Network:
    """make: (quick) -> network. inputs: (examples, quick, generator) -> x. examples: of a full and of a quick run.

    batch: examples of a batch. few: examples for what costs many passes, and for the comparison with other tools.
    """

    make: Callable[[bool], nn.Module]
    inputs: Callable[[int, bool, torch.Generator], Tensor]
    classes: Callable[[bool], int]
    examples: tuple[int, int]
    batch: int
    few: int

    def case(self, name: str, setting: Setting) -> Case:
        """Made where it is measured: a billion weights take long to draw on the host."""
        generator, quick = torch.Generator().manual_seed(0), setting.quick
        examples = setting.examples(*self.examples)
        x = self.inputs(examples, quick, generator)
        y = torch.randint(self.classes(quick), (examples,), generator=generator)
        with torch.random.fork_rng(), setting.device:
            torch.manual_seed(0)
            model = self.make(quick)
        return make_case(f"{name}{' (tiny)' if quick else ''}", model, x, y, examples, setting.device.type,
                         batch=self.batch)


def images(examples: int, quick: bool, generator: torch.Generator) -> Tensor:
    side = 32 if quick else 224
    return torch.randn(examples, 3, side, side, generator=generator)


def tokens(length: int, words: int, examples: int, quick: bool, generator: torch.Generator) -> Tensor:
    return torch.randint(words if not quick else 100, (examples, length if not quick else 8), generator=generator)


def resnet50(quick: bool) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 10} if quick else {
        "num_labels": 1000}
    return Logits(ResNetForImageClassification(ResNetConfig(**sizes)), "pixel_values")


def vit_b16(quick: bool) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
             "image_size": 32, "num_labels": 10} if quick else {"num_labels": 1000}
    return Logits(ViTForImageClassification(ViTConfig(**sizes)), "pixel_values")


def bert_base(quick: bool) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
             "vocab_size": 100} if quick else {}
    return Logits(BertForSequenceClassification(BertConfig(num_labels=2, **sizes)), "input_ids")


def causal_1b(quick: bool) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
             "vocab_size": 100} if quick else {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
                                               "num_key_value_heads": 8, "intermediate_size": 8192,
                                               "vocab_size": 32_000, "tie_word_embeddings": True}
    return Logits(LlamaForCausalLM(LlamaConfig(use_cache=False, **sizes)), "input_ids", last=True)


NETWORKS = {
    "resnet-50": Network(resnet50, images, lambda quick: 10 if quick else 1000, (256, 32), 64, 32),
    "vit-b16": Network(vit_b16, images, lambda quick: 10 if quick else 1000, (256, 32), 64, 32),
    "bert-base": Network(bert_base, partial(tokens, 128, 30_000), lambda quick: 2, (256, 32), 64, 32),
    "causal-1b": Network(causal_1b, partial(tokens, 256, 32_000), lambda quick: 100 if quick else 32_000, (16, 16), 8,
                         4),
}


def plain_pass(subject: Subject, repeats: int) -> tuple[float, float]:
    """Seconds of a forward-backward pass over the data, the fastest, and its peak of memory in bytes."""
    risk, seconds = subject.risk, []
    risk.gradient()
    with peak(risk.device) as memory:
        for _ in range(repeats):
            synchronize(risk.device)
            began = time.perf_counter()
            risk.gradient()
            synchronize(risk.device)
            seconds.append(time.perf_counter() - began)
    return min(seconds), memory[0]


def costs(name: str, setting: Setting) -> Iterator[Row]:
    """Rows of one network: every measure, and the other tools where they are installed."""
    hide_broken_torchvision()
    until = None if setting.minutes is None else time.monotonic() + 60 * setting.minutes
    clean(setting.device)
    try:
        with limited(left(until)):
            case = NETWORKS[name].case(name, setting)
            few = replace(case, subject=case.first(NETWORKS[name].few))
            plain = [plain_pass(replace(c.subject, shared=Shared()), setting.repeats) for c in (case, few)]
    except Exception as reason:  # not enough memory, a package that is not there
        leave_out(name, reason)
        return
    say("  a plain forward-backward pass: " + ", ".join(
        f"{s:.3g} s and {m / MEBIBYTE:,.0f} MiB on {c.subject.train.size} examples"
        for (s, m), c in zip(plain, (case, few), strict=True)))
    measured_by = None if until is None else until - KEPT_FOR_OTHERS * (until - time.monotonic())
    for requests, some, beside in ((MEASURED, case, plain[0]), (MEASURED_ON_FEW, few, plain[1])):
        for request in requests:
            label = f"{request.name}{''.join(f', {v}' for k, v in request.parameters.items() if k == 'route')}"
            clean(setting.device)
            try:
                with contextlib.suppress(OutOfTime), limited(left(measured_by, OF_WHAT_IS_LEFT / 2)):
                    read(tested(some.first(2)), request)
                yield from cost(request, label, some, setting.device, left(measured_by, OF_WHAT_IS_LEFT), *beside)
            except Exception as reason:
                leave_out(f"{label} of {some.label}", reason)
    yield from others(few, setting, until)


def tested(subject: Subject) -> Subject:
    """The subject as it was before anything was measured, with its training data as test data."""
    return replace(subject, test=subject.train, shared=Shared())


def cost(request: Request, label: str, case: Case, device: torch.device, most: float | None, step: float,
         step_memory: float) -> Iterator[Row]:
    """Seconds per pass and memory of one measure, broken off after `most` seconds."""
    subject, note = tested(case.subject), ""
    began = time.perf_counter()
    with peak(device) as memory:
        try:
            with limited(most):
                read(subject, request)
        except OutOfTime as reason:
            if not subject.risk.passes:
                raise
            note = f"; broken off, {reason}"
        synchronize(device)
        seconds = time.perf_counter() - began
    passes = subject.risk.passes
    each = seconds / (passes / GRADIENT)
    yield Row(f"seconds per pass: {label}, {case.label}, a plain forward-backward pass / a measure's", each, step,
              f"{passes / GRADIENT:.3g} such passes took {seconds:.3g} s: {each / step:.2f} of a plain one each{note}",
              GRADIENT, GRADIENT)
    yield Row(f"memory: {label}, {case.label}, a gradient / a measure, peak in MiB", memory[0] / MEBIBYTE,
              step_memory / MEBIBYTE, f"weights included; batches of {max(case.subject.train.lengths)}{note}", passes,
              GRADIENT)


def others(case: Case, setting: Setting, until: float | None) -> Iterator[Row]:
    """The total trace against PyHessian and curvlinops."""
    case = replace(case, few=case.first(2))
    clean(setting.device)
    try:
        with limited(left(until, 0.6)):
            runs, equal, row = total_against_probes(case, replace(setting, most_repeats=2),
                                                    setting.of(RTOL, QUICK_RTOL), PROBES)
    except Exception as reason:  # not installed, another tool's limits, memory
        leave_out(f"PyHessian on {case.label}", reason)
        return
    yield row
    clean(setting.device)
    try:
        with limited(left(until)):
            row = against_curvlinops(case, replace(setting, quick=True), runs["ours"], equal)
    except Exception as reason:
        leave_out(f"curvlinops on {case.label}", reason)
        return
    yield row


if __name__ == "__main__":
    done = main("gpu", __doc__.splitlines()[0], {name: partial(costs, name) for name in NETWORKS})
    for sentence in LEFT_OUT:
        say(f"left out: {sentence}")
    raise SystemExit(done)
