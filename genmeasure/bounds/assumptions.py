"""What a theorem assumes, checked on the subject. Each check returns None, or a sentence that says what is violated."""

from __future__ import annotations

import torch

from genmeasure.curvature.gauss_newton import piecewise_linear
from genmeasure.subject import Subject


def feed_forward(subject: Subject) -> str | None:
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


def smooth(subject: Subject) -> str | None:
    """Activations are twice differentiable."""
    if subject.remember("piecewise linear", lambda: piecewise_linear(subject.risk)):
        return "the outputs are piecewise linear in each layer's weights, so activations are not twice differentiable"
    return None


def bounded_loss(subject: Subject) -> str | None:
    """The loss lies in [0, C] for every input, not only on the sample."""
    if subject.loss.upper is None:
        return f"the loss {subject.loss.name} is unbounded; C is a plug-in"
    return None
