"""What a theorem assumes, checked on the subject: None, or a sentence that says what is violated.

`expressible` is of another kind: without it the theorem has no expression for the network at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from genmeasure.curvature.gauss_newton import piecewise_linear
from genmeasure.risk import nodes
from genmeasure.subject import Subject

FOREIGN = {"softmax": "a softmax (attention)", "scaleddotproduct": "a softmax (attention)", "layernorm": "LayerNorm",
           "groupnorm": "GroupNorm", "rmsnorm": "RMSNorm", "embedding": "an embedding"}
"""Parts of the names of autograd's nodes, and what they are a sign of."""


def expressible(subject: Subject) -> str | None:
    """None where a norm bound has an expression for the network; else what it has none for.

    Theorems on products of norms are for linear maps with 1-Lipschitz steps between them. Dot-product attention has no
    global Lipschitz constant, a normalisation by the example's own statistics none below |g| / sqrt(eps) (bounds.md 5).
    Seen in the graph of a forward pass, so that it does not matter how a model calls its parts.
    """
    def found() -> str:
        risk = subject.risk
        batch = risk.place(next(iter(subject.train)).select(slice(2)))
        with torch.enable_grad():
            names = {node.name().lower().replace("_", "") for node in nodes([risk.outputs(
                {k: w.detach().requires_grad_() for k, w in risk.weights.items()}, batch)])}
        names |= {type(m).__name__.lower() for m in subject.model.modules()}
        return ", ".join(sorted({what for part, what in FOREIGN.items() if any(part in name for name in names)}))
    foreign = subject.remember("foreign parts", found)
    return f"the theorem has no expression for {foreign}" if foreign else None


def feed_forward(subject: Subject, parameters: Mapping[str, Any]) -> str | None:
    """A plain chain of layers without biases, with positively homogeneous activations.

    Such a network of L layers is homogeneous of degree L in its weights: f(c W) = c^L f(W). Residual branches, biases,
    BatchNorm shifts and smooth activations all break that.
    """
    risk = subject.risk
    batch = risk.place(next(iter(subject.train)).select(slice(8)))
    factor = min(1.25, 2 ** (20 / len(subject.layers)))  # so that no number of layers makes the outputs overflow
    with torch.no_grad():
        before = risk.outputs({}, batch)
        after = risk.outputs({k: w * factor for k, w in risk.weights.items()}, batch)
    expected = before * factor ** len(subject.layers)
    if (after - expected).abs().max() <= 1e-4 * expected.abs().max():
        return None
    return (f"the outputs are not homogeneous of degree {len(subject.layers)} in the layers' weights: residual "
            "branches, biases, normalisation or smooth activations")


KNOWN = (nn.Sequential, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ReLU, nn.LeakyReLU, nn.Flatten, nn.Identity,
         nn.Dropout, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
"""Modules whose whole forward pass is known; those without weights are 1-Lipschitz and keep zero at zero."""


def known_modules(subject: Subject, parameters: Mapping[str, Any]) -> str | None:
    """The forward pass is a chain of known modules: nothing rescales, and a Linear is applied once per example."""
    strange = sorted({type(m).__name__ for m in subject.model.modules() if type(m) not in KNOWN})
    if strange:
        return f"the forward pass of {', '.join(strange)} is not known to apply layers and 1-Lipschitz steps alone"
    if any(not x.convolution and len(x.input_shape) > 1 for x in subject.layers):
        return "a Linear layer is applied at several positions of an example"
    return None


def bounded_inputs(subject: Subject, parameters: Mapping[str, Any]) -> str | None:
    """The Euclidean norm of every input is bounded by a number fixed in advance."""
    if parameters.get("variant") == "theorem" and parameters["input_norm"] is None:
        return "the bound on the inputs' norm is the largest on the sample; give input_norm"
    return None


def smooth(subject: Subject, parameters: Mapping[str, Any]) -> str | None:
    """Activations are twice differentiable."""
    if subject.remember("piecewise linear", lambda: piecewise_linear(subject.risk)):
        return "the outputs are piecewise linear in each layer's weights, so activations are not twice differentiable"
    return None


def bounded_loss(subject: Subject, parameters: Mapping[str, Any]) -> str | None:
    """The loss lies in [0, C] for every input, not only on the sample."""
    if subject.loss.upper is None:
        return f"the loss {subject.loss.name} is unbounded; C is a plug-in"
    return None


def independent_start(subject: Subject, parameters: Mapping[str, Any]) -> str | None:
    """The start, which the prior stands at, was chosen without the training examples."""
    if parameters["start_saw_sample"]:
        return "the start was trained on the sample, so that the prior depends on it"
    return None


def unused_test_data(subject: Subject, parameters: Mapping[str, Any]) -> str | None:
    """Neither training nor choosing between checkpoints looked at the test data."""
    return "the test data took part in choosing this checkpoint" if parameters["test_was_used"] else None


REPEATED = 0.01
"""A larger share of copies among the training examples is no accident."""


def distinct_examples(subject: Subject, parameters: Mapping[str, Any]) -> str | None:
    """The training examples are n independent ones, of which copies are a sign that they are not."""
    def copies() -> int:
        digests = [batch.select(slice(i, i + 1)).digest() for batch in subject.train for i in range(len(batch))]
        return len(digests) - len(set(digests))
    found = subject.remember("copies", copies)
    if found <= REPEATED * subject.train.size:
        return None
    return f"{found} of {subject.train.size} training examples are copies of others, and n counts them"
