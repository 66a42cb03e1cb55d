"""What a theorem assumes, checked on the subject: None, or a sentence that says what is violated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from genmeasure.curvature.gauss_newton import piecewise_linear
from genmeasure.subject import Subject


def feed_forward(subject: Subject, parameters: Mapping[str, Any]) -> str | None:
    """A plain chain of layers without biases, with positively homogeneous activations.

    Such a network of L layers is homogeneous of degree L in its weights: f(c W) = c^L f(W). Residual branches, biases,
    BatchNorm shifts and smooth activations all break that.
    """
    risk = subject.risk
    batch = risk.place(next(iter(subject.train)).select(slice(8)))
    factor = 1.25
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
