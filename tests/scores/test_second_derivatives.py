"""What has no second derivative is named by the methods that need it, also where torch leaves it out in silence."""

import pytest
import torch
from torch import nn

import pathex
from brute_force.cases import Wired
from pathex.errors import UnsupportedOperation

TWICE = "exact=True differentiates twice, which an operation of the network does not allow"
NEEDS = {
    "grasp": ("grasp needs second derivatives", "; .* once only, one of OnceBackward", {}),
    "prospr": ("prospr needs second derivatives, or first_order=True, .*", "; .* once only, one of OnceBackward", {}),
    "ntk-sap": (TWICE, "", {"exact": True}),
}
DATA = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 2


class Ordinary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()


class Once(Ordinary):
    backward = staticmethod(torch.autograd.function.once_differentiable(Ordinary.backward))


def network(function, beside):
    """All of it, or a part of it, goes through a function of its own."""

    def form(net, x):
        hidden = function.apply(net.first(x).tanh())
        return net.last(hidden + x if beside else hidden)

    return Wired(form, first=nn.Linear(3, 3), last=nn.Linear(3, 2))


def scored(model, method, **options):
    return all(
        entry.isfinite().all() and entry.any() for entry in pathex.score(model, method, DATA, **options).values()
    )


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("method", NEEDS)
def test_a_function_that_can_be_differentiated_once_only(method, beside):
    message, reason, options = NEEDS[method]
    assert scored(network(Ordinary, beside), method, **options)
    with pytest.raises(UnsupportedOperation, match=message + reason):
        pathex.score(network(Once, beside), method, DATA, **options)


@pytest.mark.parametrize(
    ("method", "options"), [("snip", {}), ("ntk-sap", {}), ("prospr", {"first_order": True})], ids=str
)
def test_methods_that_need_no_second_derivative(method, options):
    assert all(scored(network(Once, beside), method, **options) for beside in (True, False))


@pytest.mark.parametrize("method", ["grasp", "prospr"])
def test_a_kernel_that_has_a_first_derivative_only(method):
    def form(net, x):
        tokens = net.first(x).view(len(x), 1, 4, 2)
        attended = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(tokens, tokens, tokens)[0]
        return net.last(attended.flatten(1))

    model = Wired(form, first=nn.Linear(3, 8), last=nn.Linear(8, 2))
    assert scored(model, "snip")
    with pytest.raises(UnsupportedOperation, match=NEEDS[method][0] + ": .*attention.*not implemented"):
        pathex.score(model, method, DATA)
