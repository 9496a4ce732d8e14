"""Which parameters are read as one because they start at zero, and what a survey sees."""

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import ScaledStdConv2d
from torch import Tensor, nn

import pathex
from pathex.errors import PathexWarning
from pathex.graph import cost, trace
from pathex.masks import prunable_weights
from pathex.paths import read_scales, survey

X = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))


class _Scaled(nn.Module):
    """A residual block behind a scale of its own making."""

    def __init__(self, value: float, apply: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.gamma = nn.Parameter(torch.full((4,), value))
        self.apply_scale = apply

    def forward(self, x: Tensor) -> Tensor:
        return x + self.apply_scale(self.conv(x), self.gamma)


def _read(model: nn.Module, x: Tensor = X) -> dict[str, Tensor]:
    return read_scales(model, survey(trace(model, x)), set(prunable_weights(model)))


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "view": lambda x, g: x * g.view(-1, 1, 1),
    "index": lambda x, g: g[:, None, None] * x,
    "reshape": lambda x, g: x.mul(g.reshape(1, -1, 1, 1)),
    "in place": lambda x, g: x.mul_(g.view(1, 4, 1, 1)),
    "function": lambda x, g: torch.mul(x, other=g.unsqueeze(-1).unsqueeze(-1)),
    "expanded": lambda x, g: x * g.view(1, -1, 1, 1).expand_as(x),
    "data": lambda x, g: x * g.data.view(-1, 1, 1),
    "norm": lambda x, g: F.batch_norm(x, None, None, weight=g, training=True),
    "norm by position": lambda x, g: F.batch_norm(x, None, None, g, None, True),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [0.0, 1e-6, -1e-3])
def test_small_equal_factors_are_read_as_one(form: str, value: float) -> None:
    scales = _read(_Scaled(value, FORMS[form]))
    assert list(scales) == ["gamma"]
    assert torch.equal(scales["gamma"], torch.ones(4))


@pytest.mark.parametrize("value", [0.01, 0.1, 1.0])
def test_larger_factors_are_taken_as_they_are(value: float) -> None:
    assert _read(_Scaled(value, FORMS["view"])) == {}


def test_small_factors_that_differ_are_taken_as_they_are() -> None:
    model = _Scaled(0.0, FORMS["view"])
    with torch.no_grad():
        model.gamma[1] = 1e-4
    assert _read(model) == {}


def test_what_is_added_is_no_factor() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    for name, entry in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(entry)
    assert survey(trace(model, X)).factors == {"1.weight"}
    assert _read(model) == {}
    assert _read(_Scaled(0.0, lambda x, g: x + g.view(-1, 1, 1))) == {}


def test_a_head_of_zeros_is_read_as_one_and_a_hidden_layer_is_not() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    nn.init.zeros_(model[3].weight)
    assert list(_read(model)) == ["3.weight"]
    nn.init.zeros_(model[0].weight)
    nn.init.ones_(model[3].weight)
    assert _read(model) == {}


def test_a_standardised_weight_whose_gain_is_zero() -> None:
    """As the residual branches of normaliser-free networks begin."""
    model = nn.Sequential(ScaledStdConv2d(4, 4, 1, gain_init=0.0), nn.ReLU(), nn.Conv2d(4, 2, 1))
    assert list(_read(model)) == ["0.gain"]
    with pytest.warns(PathexWarning, match=r"0\.gain"):
        scores = pathex.score(model, "px", data=X)
    assert scores["0.weight"].any()
    assert _read(nn.Sequential(ScaledStdConv2d(4, 4, 1), nn.Conv2d(4, 2, 1))) == {}


def test_weights_come_in_the_order_of_their_calls() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.stem, self.unused = nn.Linear(4, 2), nn.Conv2d(4, 4, 1), nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x).relu().mean((2, 3)))

    assert survey(trace(Backwards(), X)).weights == ("stem.weight", "head.weight")


def test_the_cost_is_that_of_one_image() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))
    for count in (1, 2, 3):
        found = cost(trace(model, X[:count]))
        assert (found.activations, found.largest) == (288 + 288 + 5, 288)
        assert found.products == {"0.weight": 36 * 32, "0.bias": 0, "3.weight": 288 * 5, "3.bias": 0}


@pytest.mark.parametrize("name", ["resnet10t", "resnet26", "regnetx_002"])
def test_timm_residual_networks_that_start_as_identities(name: str) -> None:
    model = timm.create_model(name, num_classes=3)
    x = torch.randn(2, 3, 32, 32)
    scales = _read(model, x)
    zero = {key for key, entry in model.named_parameters() if not entry.any() and not key.endswith("bias")}
    assert set(scales) == zero
    assert len(zero) > 2
    with pytest.warns(PathexWarning, match="read as one"):
        scores = pathex.score(model, "px", data=x)
    assert all(score.any() for score in scores.values())
    with pytest.warns(PathexWarning, match="all scores are zero"):
        stored = pathex.score(model, "px", data=x, scales="stored")
    assert not all(score.any() for score in stored.values())
