"""Every way to multiply with a parameter is noticed where it starts at zero, and nothing else is."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pathex
from pathex.errors import PathexWarning
from pathex.graph import trace
from pathex.masks import prunable_weights
from pathex.paths import read_scales, survey

pytestmark = pytest.mark.filterwarnings(
    "ignore:px.* is derived for piecewise-linear", "ignore:synflow.* is derived for piecewise-linear"
)

Form = Callable[[Tensor, Tensor], Tensor]
X = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))


class _Block(nn.Module):
    def __init__(self, form: Form, *shape: int, value: float = 0.0) -> None:
        super().__init__()
        self.conv, self.gamma, self.form = nn.Conv2d(4, 4, 1), nn.Parameter(torch.full(shape or (4,), value)), form

    def forward(self, x: Tensor) -> Tensor:
        return x + self.form(self.conv(x), self.gamma)


def _read(model: nn.Module, x: Tensor = X) -> dict[str, Tensor]:
    return read_scales(model, survey(trace(model, x)), set(prunable_weights(model)))


def _across(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    return function(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


FACTORS: dict[str, Form] = {
    "layer norm": lambda x, g: _across(x, lambda y: F.layer_norm(y, (4,), g)),
    "layer norm by keyword": lambda x, g: _across(x, lambda y: F.layer_norm(y, (4,), bias=None, weight=g)),
    "layer norm of torch": lambda x, g: _across(x, lambda y: torch.layer_norm(y, (4,), g)),
    "group norm": lambda x, g: F.group_norm(x, 2, g),
    "group norm of torch": lambda x, g: torch.group_norm(x, 2, weight=g),
    "instance norm": lambda x, g: F.instance_norm(x, weight=g),
    "instance norm by position": lambda x, g: F.instance_norm(x, None, None, g),
    "instance norm of torch": lambda x, g: torch.instance_norm(x, g, None, None, None, True, 0.1, 1e-5, False),
    "rms norm": lambda x, g: _across(x, lambda y: F.rms_norm(y, (4,), g)),
    "added product": lambda x, g: torch.addcmul(x, g.view(4, 1, 1), x.relu()),
    "added product by method": lambda x, g: x.addcmul(x.relu(), g.view(4, 1, 1)),
    "added product in place": lambda x, g: x.clone().addcmul_(tensor1=g.view(4, 1, 1), tensor2=x),
    "interpolated": lambda x, g: torch.lerp(x, x.relu(), g.view(4, 1, 1)),
    "squashed": lambda x, g: x * g.tanh().view(4, 1, 1),
    "scaled": lambda x, g: x * (0.5 * g / 3).view(4, 1, 1),
    "cast": lambda x, g: x * g.to(x.dtype).float()[:, None, None],
    "of the weight": lambda x, g: F.conv2d(x, torch.eye(4).view(4, 4, 1, 1) * g.view(4, 1, 1, 1)),
}
OTHERS: dict[str, Form] = {
    "shift": lambda x, g: F.group_norm(x, 2, None, g) + F.instance_norm(x, bias=g),
    "gate": lambda x, g: x * g.sigmoid().view(4, 1, 1),
    "exponential": lambda x, g: x * g.exp().view(4, 1, 1),
    "one more": lambda x, g: x * (1 + g).view(4, 1, 1),
    "divisor": lambda x, g: x / (g + 1).view(4, 1, 1),
    "position": lambda x, g: x + 2 * g.view(4, 1, 1),
    "added constants": lambda x, g: torch.addcmul(x, g.view(4, 1, 1), torch.ones(4, 1, 1)),
    "start of an interpolation": lambda x, g: torch.lerp(g.view(4, 1, 1), x, 0.5),
    "bias": lambda x, g: F.conv2d(x, torch.eye(4).view(4, 4, 1, 1), g),
}


@pytest.mark.parametrize("form", FACTORS)
@pytest.mark.parametrize("value", [0.0, 1e-5])
def test_factors(form: str, value: float) -> None:
    scales = _read(_Block(FACTORS[form], value=value))
    assert list(scales) == ["gamma"]
    assert torch.equal(scales["gamma"], torch.ones(4))
    assert _read(_Block(FACTORS[form], value=0.5)) == {}


@pytest.mark.parametrize("form", OTHERS)
def test_what_does_not_make_a_block_vanish(form: str) -> None:
    assert _read(_Block(OTHERS[form])) == {}


def test_a_single_number() -> None:
    """As ReZero and SkipInit begin."""
    assert list(_read(_Block(lambda x, g: x.mul_(g), 1))) == ["gamma"]
    model = _Block(lambda x, g: g * x)
    model.gamma = nn.Parameter(torch.zeros(()))
    assert _read(model)["gamma"].shape == ()


GAINS: dict[str, Form] = {
    "weight norm": lambda w, g: torch._weight_norm(w, g.view(4, 1, 1, 1), 0),
    "by hand": lambda w, g: g.view(4, 1, 1, 1) * (w - w.mean()) / w.std(),
    "normalised": lambda w, g: F.normalize(w, dim=1) * g.view(4, 1, 1, 1),
    "batch norm": lambda w, g: F.batch_norm(w.view(1, 4, -1), None, None, g, None, True).view_as(w),
}


@pytest.mark.parametrize("form", GAINS)
def test_the_gain_of_a_computed_weight(form: str) -> None:
    class Gained(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(4, 4, 1)
            self.gain = nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, GAINS[form](self.weight, self.gain), self.bias)

    model = nn.Sequential(Gained(), nn.ReLU(), nn.Conv2d(4, 2, 1))
    found = survey(trace(model, X))
    assert found.weights == ("0.weight", "2.weight")
    assert found.factors == {"0.gain"}
    assert list(_read(model)) == ["0.gain"]


# -- heads -------------------------------------------------------------------------------------------------------------


class _Heads(nn.Module):
    """Two heads that are averaged and a third one beside, all zero, after a hidden layer of zeros."""

    def __init__(self, result: Callable[..., Any]) -> None:
        super().__init__()
        self.result = result
        self.hidden, self.one, self.two, self.beside = (nn.Linear(4, 4) for _ in range(4))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Any:
        x = self.hidden(x).relu()
        return self.result(self.one(x), self.two(x), self.beside(x))


@pytest.mark.parametrize(
    ("result", "output", "heads"),
    [
        (lambda a, b, c: (a + b) / 2, None, ["one", "two"]),
        (lambda a, b, c: {"out": a, "aux": c}, None, ["one"]),
        (lambda a, b, c: {"out": a, "aux": c}, "aux", ["beside"]),
        (lambda a, b, c: (b.view(-1, 2, 2), a), None, ["two"]),
        (lambda a, b, c: torch.cat([a, b, c], 1), None, ["one", "two", "beside"]),
    ],
)
def test_heads_are_what_reaches_the_output(result: Callable[..., Any], output: str | None, heads: list[str]) -> None:
    model, x = _Heads(result), torch.randn(3, 4)
    found = survey(trace(model, x, output=output))
    assert found.heads == tuple(f"{name}.weight" for name in heads)
    assert list(read_scales(model, found, set(prunable_weights(model)))) == list(found.heads)


def test_a_head_written_as_a_matrix_product() -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.proj = nn.Linear(4, 4), nn.Parameter(torch.zeros(4, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).relu() @ self.proj

    model = Projected()
    nn.init.zeros_(model.body.weight)
    found = survey(trace(model, torch.randn(3, 4)))
    assert (found.weights, found.heads) == (("body.weight", "proj"), ("proj",))
    assert list(read_scales(model, found, {"body.weight", "proj"})) == ["proj"]


# -- networks of timm --------------------------------------------------------------------------------------------------

# Network -> words in the names of its parameters that start at zero or almost there, and how many of them there are.
STARTS: dict[str, tuple[tuple[str, ...], int]] = {
    "convnext_atto": (("gamma",), 12),
    "convnextv2_atto": (("grn.weight",), 12),
    "cait_xxs24_224": (("gamma_1", "gamma_2"), 52),
    "resmlp_12_224": (("ls1", "ls2", "head.weight"), 25),
    "mixer_s32_224": (("head.weight",), 1),
    "poolformer_s12": (("layer_scale1.scale", "layer_scale2.scale"), 24),
    "deit3_small_patch16_224": (("ls1.gamma", "ls2.gamma"), 24),
    "swinv2_tiny_window8_256": (("norm1.weight", "norm2.weight"), 24),
    "nf_resnet26": (("conv3.gain",), 8),
    "levit_128s": (("bn.weight",), 20),
    "edgenext_xx_small": (("gamma", "gamma_xca"), 15),
}


@pytest.mark.parametrize("name", STARTS)
def test_networks_of_timm_that_start_at_zero(name: str) -> None:
    words, count = STARTS[name]
    model = timm.create_model(name, num_classes=3)
    scales = _read(model, torch.randn(1, *model.default_cfg["input_size"]))
    assert len(scales) == count
    assert all(key.endswith(words) for key in scales)


def test_a_skip_that_starts_at_zero() -> None:
    model = timm.create_model("nf_resnet26", num_classes=3, skipinit=True)
    scales = _read(model, torch.randn(1, 3, 64, 64))
    assert sum(key.endswith("skipinit_gain") for key in scales) == 8


@pytest.mark.parametrize("name", ["resmlp_12_224", "nf_resnet26"])
def test_no_score_vanishes_with_a_scale(name: str) -> None:
    options = {"img_size": 32} if name == "resmlp_12_224" else {}
    model = timm.create_model(name, num_classes=3, **options)
    with pytest.warns(PathexWarning, match="read as one"):
        scores = pathex.score(model, "px", data=torch.randn(1, 3, 32, 32))
    assert all(score.any() for score in scores.values())
