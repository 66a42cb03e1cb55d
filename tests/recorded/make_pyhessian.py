"""Record PyHessian 0.1's traces and top eigenvalue: python tests/recorded/make_pyhessian.py, with pyhessian installed.

Its own stopping rules are switched off: a fixed number of probes for the trace, of products for the power iteration.
"""

from __future__ import annotations

import json
import math
import warnings
from importlib.metadata import version
from pathlib import Path

import pyhessian
import torch
from network import ACTIVATIONS, batches, network, weights
from torch import nn

PROBES, PRODUCTS, NEVER = 4000, 2000, float("-inf")


def record(activation: str) -> dict:
    model = network(activation).requires_grad_(False)
    for weight in weights(model).values():
        weight.requires_grad_()
    tool = pyhessian.hessian(model, nn.CrossEntropyLoss(), dataloader=batches(), cuda=False)
    forms, product = [], tool.dataloader_hv_product

    def noted(v):
        value, products = product(v)
        forms.append([(p * z).sum().item() for p, z in zip(products, v, strict=True)])
        return value, products
    torch.manual_seed(0)
    tool.dataloader_hv_product = noted
    totals = torch.tensor(tool.trace(maxIter=PROBES, tol=NEVER), dtype=torch.float64)
    tool.dataloader_hv_product = product
    each = torch.tensor(forms, dtype=torch.float64)
    (top,), (vector,) = tool.eigenvalues(maxIter=PRODUCTS, tol=NEVER)
    _, moved = product(vector)
    residual = math.sqrt(sum((m - top * v).square().sum().item() for m, v in zip(moved, vector, strict=True)))
    return {"total": {"value": totals.mean().item(), "stderr": totals.std().item() / math.sqrt(PROBES)},
            "layers": {name: {"value": x.mean().item(), "stderr": x.std().item() / math.sqrt(PROBES)}
                       for name, x in zip(weights(model), each.unbind(1), strict=True)},
            "top": {"value": top, "residual": residual}}


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="Using backward")
    numbers = {"made with": {name: version(name) for name in ("pyhessian", "torch")}, "probes": PROBES,
               **{activation: record(activation) for activation in ACTIVATIONS}}
    Path(__file__).with_name("pyhessian.json").write_text(json.dumps(numbers, indent=1) + "\n")
