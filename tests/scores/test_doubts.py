"""A method whose derivation does not hold for the network at hand says so."""

import pytest
import torch
from torch import nn

import pathex
from pathex.errors import InvalidInput, PathexWarning
from pathex.graph import trace
from pathex.paths import survey

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


class _Gate(nn.Module):
    def forward(self, x):
        a, b = x.chunk(2, 1)
        return torch.cat([a * b, a], 1)


BEYOND = {
    "gelu": (nn.GELU(), "gelu"),
    "layer norm": (nn.LayerNorm(4), "layer_norm"),
    "softmax": (nn.Softmax(1), "softmax"),
    "product": (_Gate(), "mul"),
    "sigmoid": (nn.Sigmoid(), "sigmoid"),
}
WITHIN = (nn.ReLU(), nn.LeakyReLU(), nn.ReLU6(), nn.BatchNorm1d(4), nn.Identity(), nn.PReLU(), nn.Dropout())


def _network(module):
    return nn.Sequential(nn.Linear(4, 4), module, nn.Linear(4, 2))


@pytest.mark.parametrize("name", BEYOND)
@pytest.mark.parametrize("method", ["px", "px-literal", "synflow", "synflow-l2"])
def test_path_methods_doubt_networks_that_are_not_piecewise_linear(name, method):
    module, function = BEYOND[name]
    options = {} if method == "px" else {"per_sample": "one"}
    with pytest.warns(PathexWarning, match=rf"{method} is derived for piecewise-linear networks.*{function}") as caught:
        pathex.prune(_network(module), method, sparsity=0.5, data=X, rounds=3, **options)
    assert len(caught) == 1
    with pytest.raises(InvalidInput, match=rf"{function}.*strict"):
        pathex.score(_network(module), method, X, strict=True, **options)


@pytest.mark.parametrize("method", ["px", "synflow"])
def test_piecewise_linear_networks_raise_no_doubt(method):
    for module in WITHIN:
        pathex.score(_network(module), method, X, strict=True)


@pytest.mark.parametrize("method", ["magnitude", "random", "snip", "grasp", "ntk-diagonal"])
def test_methods_of_any_network_raise_no_doubt(method):
    pathex.score(_network(nn.GELU()), method, [(X, torch.arange(6) % 2)], strict=True)


def test_the_survey_names_what_goes_beyond():
    model = nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.LayerNorm(4), nn.ReLU(), _Gate(), nn.SiLU())
    assert survey(trace(model, X)).beyond == ("silu", "layer_norm", "mul")
