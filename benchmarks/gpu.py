"""Each measure's time per forward-backward pass and peak memory on networks of usual sizes, and other tools' traces.

The networks are made from their configurations, with random weights and inputs: costs hardly depend on them, except
that of what is drawn until it is precise, so seconds are divided by the passes that they took. Of `seconds per pass`
`ours` is for the equal of one forward-backward pass over the data, `theirs` a plain one; of `memory` the peaks in MiB
of a measure and of a gradient, on a CPU those of the process, which hands little back in between. What cannot be
carried out is left out, with the reason.
"""

from __future__ import annotations

import gc
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
            Request("hessian-trace", {"rtol": 0.5, "layer_rtol": 1e9, "max_passes": 2}),
            Request("hessian-trace", {"route": "hutchinson", "rtol": 0.5, "layer_rtol": 1e9, "max_passes": 2}),
            Request("hessian-trace", {"route": "forward", "rtol": 0.5, "layer_rtol": 1e9, "max_passes": 1}),
            Request("hessian-top", {"k": 1, "rtol": 0.5, "max_products": 8}), Request("hessian-distance"),
            Request("sharpness", {"steps": 1, "rtol": 0.5, "max_passes": 1}))
RTOL, QUICK_RTOL, PROBES = 0.05, 0.5, 3
MEBIBYTE = 2**20


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
    """make: (quick) -> network. inputs: (examples, quick, generator) -> x. examples: of a full and of a quick run."""

    make: Callable[[bool], nn.Module]
    inputs: Callable[[int, bool, torch.Generator], Tensor]
    classes: Callable[[bool], int]
    examples: tuple[int, int]

    def case(self, name: str, setting: Setting) -> Case:
        generator, quick = torch.Generator().manual_seed(0), setting.quick
        examples = setting.examples(*self.examples)
        x = self.inputs(examples, quick, generator)
        y = torch.randint(self.classes(quick), (examples,), generator=generator)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.make(quick)
        return make_case(f"{name}{' (tiny)' if quick else ''}", model, x, y, examples, setting.device.type)


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
    "resnet-50": Network(resnet50, images, lambda quick: 10 if quick else 1000, (512, 32)),
    "vit-b16": Network(vit_b16, images, lambda quick: 10 if quick else 1000, (512, 32)),
    "bert-base": Network(bert_base, partial(tokens, 128, 30_000), lambda quick: 2, (512, 32)),
    "causal-1b": Network(causal_1b, partial(tokens, 256, 32_000), lambda quick: 100 if quick else 32_000, (64, 16)),
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
    case = NETWORKS[name].case(name, setting)
    subject = replace(case.subject, test=case.subject.train)
    step, step_memory = plain_pass(replace(subject, shared=Shared()), setting.repeats)
    for request in MEASURED:
        gc.collect()
        label = f"{request.name}{''.join(f', {v}' for k, v in request.parameters.items() if k == 'route')}"
        try:
            with peak(setting.device) as memory:
                readings = read(replace(subject, shared=Shared()), request)
        except Exception as reason:
            say(f"  left out: {label} of {case.label}: {' '.join(str(reason).split())[:300]}")
            continue
        passes, seconds = readings["passes"].iloc[0], readings["seconds"].iloc[0]
        each = seconds / (passes / GRADIENT)
        yield Row(f"seconds per pass: {label}, {case.label}, a plain forward-backward pass / a measure's", each, step,
                  f"{passes / GRADIENT:.3g} such passes took {seconds:.3g} s: {each / step:.2f} of a plain one each",
                  GRADIENT, GRADIENT)
        yield Row(f"memory: {label}, {case.label}, a gradient / a measure, peak in MiB", memory[0] / MEBIBYTE,
                  step_memory / MEBIBYTE, "weights included; batches of "
                  f"{max(case.subject.train.lengths)}", passes, GRADIENT)
    try:
        runs, equal, row = total_against_probes(case, setting, setting.of(RTOL, QUICK_RTOL), PROBES)
        yield row
        yield against_curvlinops(case, setting, runs["ours"], equal)
    except Skipped as reason:
        say(f"  left out: {reason}")
    except Exception as reason:  # another tool's limits, or memory
        say(f"  left out: other tools on {case.label}: {type(reason).__name__}: {' '.join(str(reason).split())[:300]}")


if __name__ == "__main__":
    raise SystemExit(main("gpu", __doc__.splitlines()[0], {name: partial(costs, name) for name in NETWORKS}))
