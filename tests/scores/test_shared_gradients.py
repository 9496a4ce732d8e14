"""Weights whose gradients autograd hands out as one tensor."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathex
from brute_force.cases import Wired


@pytest.mark.parametrize("method", ["ntk-diagonal", "fisher-diagonal"])
def test_each_weight_is_scored_by_its_own_derivative(method: str) -> None:
    torch.manual_seed(0)
    layers = {name: nn.Linear(4, 3, bias=False) for name in ("first", "second")}
    model = Wired(lambda net, x: F.linear(x, net.first.weight + net.second.weight), **layers).double()
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.arange(5) % 3
    scores = pathex.score(model, method, (x, y))
    squares = {name: scores[name] / model.get_parameter(name).square() for name in scores}
    assert torch.allclose(squares["first.weight"], squares["second.weight"], rtol=1e-12, atol=0)
    if method == "ntk-diagonal":  # the derivative of output k by w_kj is x_j
        expected = x.square().sum(0).expand(3, 4)
        assert torch.allclose(squares["first.weight"], expected, rtol=1e-12, atol=0)
