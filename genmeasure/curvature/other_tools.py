"""Other tools' ways to the same numbers: scipy's ARPACK, and PyHessian 0.1 held to what it does right.

PyHessian 0.1 (the only release) stops traces long before they are right, divides its running mean by itself with its
sign, draws from the global generator, asserts on parameters that the loss does not use, and leaves gradients and modes
changed. Here it gets weights of its own, a number of products instead of a tolerance, and only weights that count.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn

from genmeasure.curvature.lanczos import Ends, check_wanted
from genmeasure.curvature.memory import basis_place
from genmeasure.curvature.products import Operator, gradient
from genmeasure.data.batches import Batch
from genmeasure.errors import InputError
from genmeasure.layers import Layer, differentiable
from genmeasure.risk import HESSIAN_PRODUCT, Risk

NEVER = float("-inf")
"""A tolerance of PyHessian that no change falls below, so that it takes the number of products it is told."""


def eigsh_eigenvalues(product: Callable[[Tensor], Tensor], size: int, *, k: int, negative: int, rtol: float,
                      max_products: int, like: Tensor, seed: int) -> Ends:
    """The k algebraically largest and the `negative` smallest eigenvalues by ARPACK (`scipy.sparse.linalg.eigsh`).

    Vectors and coefficients are float64 on the host, products in the dtype of `like`. Each end is an iteration of its
    own. ARPACK's tolerance is relative to the eigenvalue itself, out of reach for one near zero, so each iterates on
    the operator shifted by its largest modulus, which a first iteration finds. Residuals are computed from the vectors
    that come back. Copies of an eigenvalue may be missed, as by any iteration that starts from one vector. Raises
    `InputError` where ARPACK cannot be used (it needs more dimensions than eigenvalues) and where an iteration does not
    converge within `max_products`.
    """
    check_wanted(k, negative, size, max_products)
    if max(k, negative) >= size:
        raise InputError(f"k={k} and negative={negative} of {size} eigenvalues were asked for, and eigsh finds fewer "
                         "than there are; take route=lanczos")
    spent = 0

    def apply(x: np.ndarray) -> np.ndarray:
        nonlocal spent
        spent += 1
        return product(torch.from_numpy(x.reshape(-1)).to(like)).double().cpu().numpy()

    def end(which: str, count: int, shift: float, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues [count], ascending, and vectors [size, count] of the operator plus shift times the identity."""
        kept = min(size, max(2 * count + 1, 20), max(count + 1, max_products))
        basis_place(kept, size, torch.empty(0, dtype=torch.float64), parameter="max_products")
        operator = LinearOperator((size, size), matvec=lambda x: apply(x) + shift * x.reshape(-1), dtype=np.float64)
        try:
            values, vectors = eigsh(operator, count, which=which, tol=tolerance, ncv=kept, v0=start,
                                    maxiter=max(1, (max_products - kept) // max(1, kept - count)))
        except ArpackNoConvergence as error:
            raise InputError(f"eigsh found {len(error.eigenvalues)} of {count} eigenvalues within "
                             f"max_products={max_products}; take a larger max_products, or route=lanczos, which says "
                             "how far it came") from error
        order = np.argsort(values)
        return values[order] - shift, vectors[:, order]
    start = np.random.default_rng(seed).standard_normal(size)
    if not apply(start).any():  # a start that ARPACK refuses
        return Ends.of(torch.zeros(max(k, negative)), torch.zeros(max(k, negative)), k=k, negative=negative, rtol=rtol,
                       products=spent)
    modulus = abs(end("LM", 1, 0.0, 0.1)[0].item())
    found = [end("SA", negative, -modulus, rtol)] if negative else []
    found.append(end("LA", k, modulus, rtol))
    values = np.concatenate([x for x, _ in found])
    residuals = [np.linalg.norm(apply(v) - x * v) for some, vectors in found for x, v in zip(some, vectors.T,
                                                                                            strict=True)]
    return Ends.of(torch.from_numpy(values), torch.tensor(residuals, dtype=torch.float64), k=k, negative=negative,
                   rtol=rtol, products=spent)


def pyhessian_probes(risk: Risk, count: int, seed: int) -> Tensor:
    """z_i' (H z)_i of `count` Rademacher probes z for all layers and all the data, [count, layers], float64.

    As PyHessian draws them: one probe for the whole data set, over all layers at once. The mean over probes is
    Tr H_ii, their spread its standard error. Layers that the loss does not use give zeros. Raises `InputError` without
    the package, for inputs by name or several of them, and for count below 1.
    """
    if count < 1:
        raise InputError(f"{count} probes were asked for; give 1 or more")
    tool = PyHessian(risk, risk.layers, "route=hutchinson")
    forms = torch.zeros(count, len(risk.layers), dtype=torch.float64)
    if tool.used:
        with surroundings(risk.device, seed):
            tool.hessian.trace(maxIter=count, tol=NEVER)
        forms[:, tool.used] = torch.stack(tool.forms)
    return forms


def pyhessian_eigenvalues(risk: Risk, k: int, *, layers: Sequence[Layer] | None = None, rtol: float, max_products: int,
                          seed: int) -> Ends:
    """The k largest eigenvalues by PyHessian's power iteration with deflation, over `layers` (by default all).

    Each takes up to max_products / k products, and stops when its relative change is below rtol squared, since the
    error of an eigenvalue is that of its vector squared. Residuals are computed here from its vectors. Power iteration
    finds the largest moduli: `InputError` where one of them is negative and so not among the largest; also without the
    package, and for inputs by name or several of them.
    """
    layers = risk.layers if layers is None else layers
    operator = Operator(risk, layers)
    check_wanted(k, 0, operator.size, max_products)
    if k > operator.size:
        raise InputError(f"k={k} of {operator.size} eigenvalues were asked for; take route=lanczos")
    basis_place(k, operator.size, operator.like, parameter="k")
    tool = PyHessian(risk, layers, "route=lanczos")
    if not tool.used:
        raise InputError("the loss uses none of the weights, so PyHessian has nothing to iterate on; take "
                         "route=lanczos")
    with surroundings(risk.device, seed):
        values, vectors = tool.hessian.eigenvalues(maxIter=max_products // k, tol=rtol**2, top_n=k)
    if min(values) < 0:
        raise InputError(f"PyHessian's power iteration came upon the negative eigenvalue {min(values):.6g} among the "
                         f"{k} of largest modulus, so they are not the largest; take route=lanczos")
    residuals = []
    for value, vector in zip(values, vectors, strict=True):
        whole = torch.cat([part.reshape(-1) for part in tool.whole(vector)])
        whole = whole / whole.norm()
        residuals.append((operator(whole) - value * whole).norm().item())
    ascending = np.argsort(values)
    return Ends.of(torch.tensor(values, dtype=torch.float64)[ascending],
                   torch.tensor(residuals, dtype=torch.float64)[ascending], k=k, negative=0, rtol=rtol,
                   products=len(tool.forms) + k)


class Weights(nn.Module):
    """The model as a function of its inputs, whose only parameters are copies of the given layers' weights."""

    def __init__(self, risk: Risk, layers: Sequence[Layer]):
        super().__init__()
        self._risk, self.names = risk, [x.name for x in layers]
        self.copies = nn.ParameterList([risk.weights[k].clone() for k in self.names])

    def forward(self, x: Tensor) -> Tensor:
        return self._risk.outputs(dict(zip(self.names, self.copies, strict=True)), Batch((x,), torch.empty(len(x))))


class PyHessian:
    """PyHessian over the data of a risk, noting z_i' (H z)_i of every product, which it keeps to itself.

    used: rows of `layers` whose weights have a Hessian at all; PyHessian sees only those.
    """

    def __init__(self, risk: Risk, layers: Sequence[Layer], remedy: str):
        package = imported()
        first = next(iter(risk.batches))
        if not isinstance(first.inputs, tuple) or len(first.inputs) != 1:
            given = "inputs by name" if isinstance(first.inputs, dict) else f"{len(first.inputs)} inputs"
            raise InputError(f"the batches hold {given}, and PyHessian passes one tensor to the model; take {remedy}")
        self.risk, self.layers = risk, layers
        self.used = used_rows(risk, layers)
        self.forms: list[Tensor] = []
        if self.used:
            model = Weights(risk, [layers[i] for i in self.used])

            def mean_loss(outputs: Tensor, targets: Tensor) -> Tensor:
                return risk.scale * risk.loss(outputs, targets).mean()
            self.hessian = package.hessian(model, mean_loss, dataloader=self, cuda=False)
            self.hessian.device = risk.device
            self._product = self.hessian.dataloader_hv_product
            self.hessian.dataloader_hv_product = self._noted

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches; PyHessian weights each by its number of examples."""
        for batch in self.risk.batches:
            placed = self.risk.place(batch)
            yield placed.inputs[0], placed.targets

    def _noted(self, v: list[Tensor]) -> tuple[float, list[Tensor]]:
        v = [z.to(p) for z, p in zip(v, self.hessian.params, strict=True)]
        self.risk.spend(HESSIAN_PRODUCT, self.risk.batches.size)
        value, products = self._product(v)
        forms = [(h * z).double().sum() for h, z in zip(products, v, strict=True)]
        self.forms.append(torch.stack(forms).cpu())
        return value, products

    def whole(self, vector: Sequence[Tensor]) -> list[Tensor]:
        """A vector of PyHessian's by layer, zero where a weight is not used."""
        parts = [torch.zeros_like(self.risk.weights[x.name]) for x in self.layers]
        for row, part in zip(self.used, vector, strict=True):
            parts[row] = part.detach().to(parts[row])
        return parts


def used_rows(risk: Risk, layers: Sequence[Layer]) -> list[int]:
    """Rows of the layers on whose weights the gradient of the loss depends; PyHessian raises on any other."""
    few = risk.place(next(iter(risk.batches)).select(slice(2)))
    point = {x.name: risk.weights[x.name].clone().requires_grad_() for x in layers}
    with torch.enable_grad():
        slopes = gradient(risk.losses(point, few).sum(), point, create_graph=True)
        squares = sum(g.square().sum() for g in slopes)
        if not squares.requires_grad:
            return []
        bent = torch.autograd.grad(squares, list(point.values()), allow_unused=True)
    return [i for i, (g, h) in enumerate(zip(slopes, bent, strict=True)) if g.requires_grad and h is not None]


def imported() -> ModuleType:
    try:
        import pyhessian
    except ImportError as error:
        raise InputError("the package pyhessian is not installed; install it with `pip install "
                         '"genmeasure[pyhessian]"`') from error
    return pyhessian


@contextlib.contextmanager
def surroundings(device: torch.device, seed: int) -> Iterator[None]:
    """PyHessian draws from the global generator, warns in `backward(create_graph=True)`, needs plain attention."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), warnings.catch_warnings(), differentiable(), torch.enable_grad():
        warnings.filterwarnings("ignore", message="Using backward")
        torch.manual_seed(seed)
        yield
