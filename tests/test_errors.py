"""Unknown names and missing derivatives: the sentence ends with what to do."""

from __future__ import annotations

import pytest
import small
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import genmeasure as gm
from genmeasure.errors import MANY, InputError, second_derivative, unknown


def test_the_nearest_name_is_suggested():
    assert str(unknown("measure", "hesian-trace", ["gap", "hessian-trace"])) == \
        "unknown measure 'hesian-trace'; did you mean 'hessian-trace'?"


def test_without_a_near_name_the_known_ones_are_listed_in_order():
    assert str(unknown("loss", "zzz", ["squared", "absolute"])) == "unknown loss 'zzz'; known are: absolute, squared"


def test_a_long_list_is_cut():
    names = [f"name-{i:03d}" for i in range(MANY + 5)]
    message = str(unknown("model", "zzz", names))
    assert message.endswith(f"{names[MANY - 1]} and 5 more")


def test_any_iterable_of_names_will_do():
    assert str(unknown("x", "zzz", (c for c in "ba"))).endswith("known are: a, b")


def test_an_input_error_is_a_value_error():
    with pytest.raises(ValueError, match="known are: a$"):
        raise unknown("x", "zzz", {"a": 1})
    assert issubclass(InputError, ValueError)


class Cube(torch.autograd.Function):
    """Without setup_context."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, slope):
        return 3 * ctx.saved_tensors[0] ** 2 * slope


class Once(Cube):
    backward = staticmethod(once_differentiable(Cube.backward))


class Apart(Cube):
    """With setup_context, but neither jvp nor a rule for vmap."""

    forward = staticmethod(lambda x: x**3)
    setup_context = staticmethod(lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


def attention(w):
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(*[w[None, None]] * 3)


OPERATIONS = {
    "_ctc_loss": lambda w: F.ctc_loss(w[:, None].log_softmax(-1), torch.tensor([[1, 2]]), torch.tensor([4]),
                                      torch.tensor([2])),
    "_embedding_bag": lambda w: F.embedding_bag(torch.tensor([[0, 1], [1, 2]]), w),
    "_cdist": lambda w: torch.cdist(w, w + 1),
    "_scaled_dot_product": attention,
}
POINT = torch.arange(16.0).reshape(4, 4) / 7
NOISE = "noise-stability, which needs no derivative"


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_without_second_derivative_is_named(name):
    point = POINT.clone().requires_grad_()
    (slope,) = torch.autograd.grad(OPERATIONS[name](point).square().sum(), point, create_graph=True)
    with pytest.raises(InputError, match=f"^{name}.* has no second derivative; .*{NOISE}$"), second_derivative():
        torch.autograd.grad(slope.sum(), point)


@pytest.mark.parametrize("name", ["_embedding_bag", "grid_sampler_2d"])
def test_an_operation_without_forward_mode_is_named(name):
    def sample(w):
        return F.grid_sample(w[None, None], torch.zeros(1, 2, 2, 2), align_corners=False)
    operation = {**OPERATIONS, "grid_sampler_2d": sample}[name]
    with pytest.raises(InputError, match=f"^{name} has no derivative in forward mode; .*{NOISE}, or route=hutchinson "
                                         "of hessian-trace, which only goes backward$"), second_derivative():
        jvp(operation, (POINT,), (POINT,))


def test_functions_of_ones_own_say_what_they_lack():
    for function, call, end in (
            (Cube, jvp, "has no setup_context, .* or take route=hutchinson of hessian-trace$"),
            (Apart, jvp, "has no jvp, .* or take route=hutchinson of hessian-trace$"),
            (Apart, lambda f, x, v: vmap(f)(x[0]), "^Apart cannot .* or take route=hutchinson of hessian-trace$")):
        with pytest.raises(InputError, match=end), second_derivative():
            call(function.apply, (POINT,), (POINT,))


def test_a_second_derivative_that_torch_would_leave_out_is_refused():
    class Net(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.first, self.second, self.function = nn.Linear(36, 4), nn.Linear(4, small.CLASSES), function

        def forward(self, x):
            return self.second(self.function.apply(self.first(x.flatten(1))))
    for function in (Once, Cube):
        net = Net(function)
        risk = gm.subject(net, net, small.batches(), device="cpu").risk
        if function is Cube:
            assert risk.twice_differentiable
        else:
            with pytest.raises(InputError, match=f"marked with once_differentiable, so .*{NOISE}$"):
                _ = risk.twice_differentiable


def test_a_loss_without_derivative_and_other_errors():
    with pytest.raises(InputError, match=f"^the loss has no derivative .*{NOISE}$"), second_derivative():
        torch.autograd.grad(torch.ones(()), torch.ones((), requires_grad=True))
    with pytest.raises(RuntimeError, match="^something else$"), second_derivative():
        raise RuntimeError("something else")
