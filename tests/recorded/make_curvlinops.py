"""Record curvlinops' Hessian and SciPy's eigenvalues of it: python tests/recorded/make_curvlinops.py.

Needs curvlinops-for-pytorch 3.0.1. The block traces are exact: the operator is applied to every unit vector.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from curvlinops import HessianLinearOperator
from network import ACTIVATIONS, batches, network, weights
from scipy.sparse.linalg import eigsh
from torch import nn


def record(activation: str) -> dict:
    model = network(activation).requires_grad_(False)
    selected = weights(model)
    for weight in selected.values():
        weight.requires_grad_()
    operator = HessianLinearOperator(model, nn.CrossEntropyLoss(), list(selected.values()), batches(),
                                     check_deterministic=False)
    size = sum(w.numel() for w in selected.values())
    diagonal = (operator @ torch.eye(size, dtype=torch.float64)).diagonal()
    traces = [part.sum().item() for part in diagonal.split([w.numel() for w in selected.values()])]
    start = np.random.RandomState(0).standard_normal(size)
    ends = eigsh(operator.to_scipy(), k=2, which="BE", tol=1e-12, v0=start, return_eigenvectors=False)
    return {"layers": dict(zip(selected, traces, strict=True)), "total": sum(traces),
            "smallest": float(min(ends)), "largest": float(max(ends))}


if __name__ == "__main__":
    tools = ("curvlinops-for-pytorch", "scipy", "torch")
    numbers = {"made with": {name: version(name) for name in tools},
               **{activation: record(activation) for activation in ACTIVATIONS}}
    Path(__file__).with_name("curvlinops.json").write_text(json.dumps(numbers, indent=1) + "\n")
