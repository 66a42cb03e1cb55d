"""The other sides, on a copy of the subject's model in which only the measured weights require gradients."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from genmeasure.subject import Subject

try:
    import pyhessian
except ImportError:
    pyhessian = None

NEVER = float("-inf")
"""A tolerance of PyHessian that no change falls below, so that it takes the number of products it is told."""


@contextmanager
def surroundings(seed: int) -> Iterator[None]:
    """PyHessian draws from the global generator, warns in `backward(create_graph=True)`, needs plain attention."""
    with torch.random.fork_rng(), warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.filterwarnings("ignore", message="Using backward")
        torch.manual_seed(seed)
        yield


def copied(subject: Subject) -> tuple[nn.Module, list[nn.Parameter]]:
    """A model of their own, with its weights in the order of the subject's layers."""
    model = copy.deepcopy(subject.model)
    parameters = [model.get_parameter(layer.parameter) for layer in subject.layers]
    for parameter in parameters:
        parameter.requires_grad_()
    return model, parameters


class Converged(Exception):
    """Ends PyHessian's power iteration, which has no residual to stop on."""


class PyHessian:
    """PyHessian 0.1 over the subject's data, noting of every product what PyHessian keeps to itself."""

    def __init__(self, subject: Subject):
        model, ordered = copied(subject)
        data = [(batch.inputs[0].to(subject.risk.dtype), batch.targets) for batch in subject.train]
        self.tool = pyhessian.hessian(model, nn.CrossEntropyLoss(), dataloader=data,
                                      cuda=subject.risk.device.type == "cuda")
        places = {id(p): i for i, p in enumerate(self.tool.params)}
        self.order = [places[id(p)] for p in ordered]
        self.forms: list[Tensor] = []
        self.eigenvalue = self.residual = float("nan")
        self.wanted = 0.0
        self._product = self.tool.dataloader_hv_product
        self.tool.dataloader_hv_product = self._noted

    def _noted(self, v: list[Tensor]) -> tuple[float, list[Tensor]]:
        value, products = self._product(v)
        self.forms.append(torch.stack([(products[i] * v[i]).sum() for i in self.order]))
        if self.wanted:
            self.eigenvalue = value
            self.residual = sum((p - value * x).square().sum() for p, x in zip(products, v, strict=True)).sqrt().item()
            if self.residual <= self.wanted * abs(value):
                raise Converged
        return value, products

    def probes(self, count: int, seed: int) -> Tensor:
        """z_i' (Hz)_i of `count` Rademacher probes for all the data, [count, layers]."""
        self.forms = []
        with surroundings(seed):
            self.tool.trace(maxIter=count, tol=NEVER)
        return torch.stack(self.forms).double().cpu()

    def top(self, rtol: float, most: int, seed: int) -> tuple[float, float, int]:
        """Eigenvalue of largest modulus, its residual and the products spent, once residual <= rtol * |eigenvalue|."""
        self.forms, self.wanted = [], rtol
        with surroundings(seed), suppress(Converged):
            self.tool.eigenvalues(maxIter=most, tol=NEVER)
        return self.eigenvalue, self.residual, len(self.forms)


def paper_traces(subject: Subject, seed: int, *, size: int = 4, most: int = 100,
                 tolerance: float = 1e-3) -> tuple[Tensor, int]:
    """The papers' recipe, literally (measures.md 8): batches of four, one probe over all layers at a time.

    Each batch draws Rademacher probes until the running mean of the total changes by less than `tolerance`, at most
    `most`; its gradient is taken once. Returns the sums over each batch's examples [batches, layers] and the number
    of probes of all batches.
    """
    model, parameters = copied(subject)
    generator = torch.Generator().manual_seed(seed)
    device = subject.risk.device
    sums, spent = [], 0
    with sdpa_kernel(SDPBackend.MATH):
        for batch in subject.train:
            for x, y in zip(batch.inputs[0].split(size), batch.targets.split(size), strict=True):
                loss = nn.functional.cross_entropy(model(x.to(device)), y.to(device))
                slopes = torch.autograd.grad(loss, parameters, create_graph=True)
                mean, before = torch.zeros(len(parameters), device=device), 0.0
                for number in range(1, most + 1):
                    probe = [(torch.randint(0, 2, p.shape, generator=generator) * 2.0 - 1).to(p) for p in parameters]
                    products = torch.autograd.grad(slopes, parameters, probe, retain_graph=True)
                    forms = torch.stack([(z * h).sum() for z, h in zip(probe, products, strict=True)])
                    mean = mean + (forms - mean) / number
                    spent += 1
                    total = mean.sum().item()
                    if abs(total - before) / (abs(before) + 1e-6) < tolerance:
                        break
                    before = total
                sums.append(mean.double().cpu() * len(y))
    return torch.stack(sums), spent


def example_forms(subject: Subject, directions: dict[str, Tensor], examples: int) -> Tensor:
    """v_i' H_ii v_i of the first examples [examples, layers], by double backward for each example and layer.

    The gradient is taken once for all layers of an example.
    """
    model, parameters = copied(subject)
    vectors = [directions[layer.name] for layer in subject.layers]
    batch = subject.risk.place(next(iter(subject.train)).select(slice(examples)))
    rows = []
    with sdpa_kernel(SDPBackend.MATH):
        for x, y in zip(batch.inputs[0], batch.targets, strict=True):
            loss = nn.functional.cross_entropy(model(x[None]), y[None])
            slopes = torch.autograd.grad(loss, parameters, create_graph=True)
            products = [torch.autograd.grad(g, p, v, retain_graph=True)[0]
                        for g, p, v in zip(slopes, parameters, vectors, strict=True)]
            rows.append(torch.stack([(h * v).sum() for h, v in zip(products, vectors, strict=True)]))
    return torch.stack(rows)
