"""The other sides, on a copy of the subject's model in which only the measured weights require gradients."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from harness import Skipped, hide_broken_torchvision
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from genmeasure.subject import Subject

NEVER = float("-inf")
"""A tolerance of PyHessian that no change falls below, so that it takes the number of products it is told."""


@contextmanager
def surroundings(seed: int) -> Iterator[None]:
    """These tools draw from the global generator, warn about their own calls, and need plain attention."""
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


def pairs(subject: Subject) -> list[tuple[Tensor, Tensor]]:
    """The data in the subject's batches, already where the weights are."""
    placed = [subject.risk.place(batch) for batch in subject.train]
    return [(batch.inputs[0], batch.targets) for batch in placed]


# PyHessian

class PyHessian:
    """PyHessian 0.1 over the subject's data, noting of every product what PyHessian keeps to itself."""

    def __init__(self, subject: Subject):
        try:
            import pyhessian
        except ImportError as error:
            raise Skipped("PyHessian is not installed; install pyhessian==0.1") from error
        model, ordered = copied(subject)
        self.tool = pyhessian.hessian(model, nn.CrossEntropyLoss(), dataloader=pairs(subject),
                                      cuda=subject.risk.device.type == "cuda")
        places = {id(p): i for i, p in enumerate(self.tool.params)}
        self.order = [places[id(p)] for p in ordered]
        self.forms: list[Tensor] = []
        self._product = self.tool.dataloader_hv_product
        self.tool.dataloader_hv_product = self._noted

    def _noted(self, v: list[Tensor]) -> tuple[float, list[Tensor]]:
        value, products = self._product(v)
        self.forms.append(torch.stack([(products[i] * v[i]).sum() for i in self.order]))
        return value, products

    def probes(self, count: int, seed: int) -> Tensor:
        """z_i' (Hz)_i of `count` Rademacher probes for all the data, [count, layers]."""
        self.forms = []
        with surroundings(seed):
            self.tool.trace(maxIter=count, tol=NEVER)
        return torch.stack(self.forms).double().cpu()

    def eigenvalues(self, count: int, tol: float, most: int, seed: int) -> tuple[list[float], int]:
        """The eigenvalues of largest modulus in falling order, and the products spent.

        By power iteration with deflation, each until it changes by less than `tol` relative, at most `most` products.
        """
        self.forms = []
        with surroundings(seed):
            values, _ = self.tool.eigenvalues(maxIter=most, tol=tol, top_n=count)
        return sorted(values, reverse=True), len(self.forms)


# curvlinops

class Noted:
    """A linear operator that multiplies few columns at a time and keeps x' A x of every column."""

    def __init__(self, operator, columns: int):
        self.operator, self.columns = operator, columns
        self.shape, self.device, self.dtype = operator.shape, operator.device, operator.dtype
        self.calls: list[Tensor] = []

    def __matmul__(self, x: Tensor) -> Tensor:
        product = torch.cat([self.operator @ part for part in x.split(self.columns, 1)], 1)
        self.calls.append((x * product).sum(0).double().cpu())
        return product


@dataclass(frozen=True)
class Drawn:
    """What one run of an estimator gave. variance: of its value, nan where one run does not tell."""

    value: float
    matvecs: int
    variance: float = math.nan


class Curvlinops:
    """The trace estimators of curvlinops on the Hessian of the mean loss in the measured weights."""

    COLUMNS = 1
    """Multiplied at once: three take as long per column on a CPU, and hold three times the activations."""

    def __init__(self, subject: Subject):
        hide_broken_torchvision()
        try:
            import curvlinops
        except ImportError as error:
            raise Skipped("curvlinops is not installed; see benchmarks/README.md") from error
        model, parameters = copied(subject)
        for parameter in model.parameters():  # what is not measured is no argument of the function either
            parameter.requires_grad_(False)
        self.tool = curvlinops
        with surroundings(0):
            operator = curvlinops.HessianLinearOperator(model, nn.CrossEntropyLoss(), parameters, pairs(subject),
                                                        check_deterministic=False)
        self.operator = Noted(operator, self.COLUMNS)

    def run(self, name: str, matvecs: int, seed: int) -> Drawn:
        """`hutchinson`, `hutch++` or `xtrace` with that many matrix-vector products.

        Given its basis, Hutch++ is Hutchinson's estimator of what that leaves: the last products tell the variance.
        """
        estimators = {"hutchinson": self.tool.hutchinson_trace, "hutch++": self.tool.hutchpp_trace,
                      "xtrace": self.tool.xtrace}
        self.operator.calls = []
        with surroundings(seed):
            value = estimators[name](self.operator, matvecs).item()
        last = self.operator.calls[-1]
        return Drawn(value, matvecs, math.nan if name == "xtrace" else last.var().item() / len(last))


# the papers' recipes

def paper_traces(subject: Subject, seed: int, *, size: int = 4, most: int = 100,
                 tolerance: float = 1e-3) -> tuple[Tensor, Tensor, int]:
    """The papers' recipe, literally (measures.md 8): batches of four, one probe over all layers at a time.

    Each batch draws Rademacher probes until the running mean of the total changes by less than `tolerance`, at most
    `most`; its gradient is taken once. Returns each batch's mean over examples [batches, layers], the batches' sizes,
    and the number of probes of all batches. The recipe goes on with the maximum over batches.
    """
    model, parameters = copied(subject)
    generator = torch.Generator().manual_seed(seed)
    device = subject.risk.device
    means, sizes, spent = [], [], 0
    with sdpa_kernel(SDPBackend.MATH):
        for inputs, targets in pairs(subject):
            for x, y in zip(inputs.split(size), targets.split(size), strict=True):
                loss = nn.functional.cross_entropy(model(x), y)
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
                means.append(mean.double().cpu())
                sizes.append(len(y))
    return torch.stack(means), torch.tensor(sizes), spent


@torch.no_grad()
def paper_noise(subject: Subject, sigmas: Sequence[float], seed: int) -> Tensor:
    """L(W + U) - L(W) [sigmas] for one independent U per sigma and all data, the papers' way (measures.md 6).

    The state dict is deep-copied for every draw and loaded back; L(W) is not counted in.
    """
    model, _ = copied(subject)
    generator = torch.Generator().manual_seed(seed)
    data, names = pairs(subject), [layer.parameter for layer in subject.layers]

    def loss() -> float:
        with sdpa_kernel(SDPBackend.MATH):
            return sum(nn.functional.cross_entropy(model(x).double(), y, reduction="sum").item()
                       for x, y in data) / subject.train.size
    plain, found = loss(), []
    for sigma in sigmas:
        state = copy.deepcopy(model.state_dict())
        moved = copy.deepcopy(state)
        for name in names:
            moved[name] += sigma * torch.randn(moved[name].shape, generator=generator).to(moved[name])
        model.load_state_dict(moved)
        found.append(loss() - plain)
        model.load_state_dict(state)
    return torch.tensor(found, dtype=torch.float64)


# double backward

def example_forms(subject: Subject, directions: dict[str, Tensor], examples: int, *, each_layer: bool) -> Tensor:
    """v_i' H_ii v_i of the first examples [examples, layers], by double backward for each example and layer.

    each_layer: a forward pass, a gradient and a product for every example and layer, restricted to its block; else
    one gradient of an example serves all its layers.
    """
    model, parameters = copied(subject)
    vectors = [directions[layer.name] for layer in subject.layers]
    inputs, targets = (torch.cat(t)[:examples] for t in zip(*pairs(subject), strict=True))
    rows = []
    with sdpa_kernel(SDPBackend.MATH):
        for x, y in zip(inputs.split(1), targets.split(1), strict=True):
            forms, groups = [], [[i] for i in range(len(parameters))] if each_layer else [list(range(len(parameters)))]
            for group in groups:
                some = [parameters[i] for i in group]
                loss = nn.functional.cross_entropy(model(x), y)
                slopes = torch.autograd.grad(loss, some, create_graph=True)
                for slope, p, i in zip(slopes, some, group, strict=True):
                    (product,) = torch.autograd.grad(slope, p, vectors[i], retain_graph=True)
                    forms.append((product * vectors[i]).sum())
            rows.append(torch.stack(forms))
    return torch.stack(rows)
