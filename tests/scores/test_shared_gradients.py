"""Weights whose gradients autograd hands out as one tensor."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pathex


class Sum(nn.Module):
    """A layer whose weight is the sum of two, so that both have the same gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.first.weight + self.second.weight)


@pytest.mark.parametrize("method", ["ntk-diagonal", "fisher-diagonal"])
def test_each_weight_is_scored_by_its_own_derivative(method: str) -> None:
    torch.manual_seed(0)
    model, x, y = Sum().double(), torch.randn(5, 4, dtype=torch.float64), torch.arange(5) % 3
    scores = pathex.score(model, method, (x, y))
    squares = {name: scores[name] / model.get_parameter(name).square() for name in scores}
    assert torch.allclose(squares["first.weight"], squares["second.weight"], rtol=1e-12, atol=0)
    if method == "ntk-diagonal":  # the derivative of output k by w_kj is x_j
        expected = x.square().sum(0).expand(3, 4)
        assert torch.allclose(squares["first.weight"], expected, rtol=1e-12, atol=0)
