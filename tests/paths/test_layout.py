"""In which layout of memory networks are read: channels last wherever that is safe, and the same scores."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import timm.layers
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import pathex
from pathex.layout import breaks_channels_last
from pathex.paths import layout_of

LAST, AS_IT_IS = torch.channels_last, torch.contiguous_format
IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """A function of 8 channels between two convolutions; its output is flattened to 64 features a channel."""

    def __init__(self, function: Callable[[Tensor], Tensor] | nn.Module, channels: int = 8) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.function = function
        self.last = nn.LazyLinear(4)
        self.forward(IMAGES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(F.relu(self.norm(self.first(x)))).flatten(1))


def _asserts(x: Tensor) -> Tensor:
    assert x.is_contiguous(), "another layout"
    return x


def _raises(x: Tensor) -> Tensor:
    if not x.is_contiguous():
        raise RuntimeError("something that nobody foresaw")
    return x


def _windows(x: Tensor) -> Tensor:
    """Counts on the strides of contiguous images, and so is silently another function in channels last."""
    n, c, h, w = x.shape
    return x.as_strided((n, c, h // 2, w), (c * h * w, h * w, 2 * w, 1)).clone()


def _shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], torch.memory_format]] = {
    "nothing": (lambda x: x, LAST),
    "flatten": (lambda x: x.flatten(2), LAST),
    "permute and back": (lambda x: x.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2), LAST),
    "cat": (lambda x: torch.cat([x, F.max_pool2d(x, 3, 1, 1)], 1), LAST),
    "channel shuffle": (_shuffle, LAST),
    "no rule": (lambda x: torch.fft.fft(x).real, LAST),
    "view of all features": (lambda x: x.view(len(x), -1), AS_IT_IS),
    "view of pixels": (lambda x: x.view(len(x), 8, -1), LAST),
    "view across channels": (lambda x: x.view(-1, 8, 8).view(len(x), 8, 8, 8), AS_IT_IS),
    "asserts a layout": (_asserts, AS_IT_IS),
    "raises in a layout": (_raises, AS_IT_IS),
    "counts on strides": (_windows, AS_IT_IS),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_network_that_runs_in_channels_last_does(name: str) -> None:
    function, expected = FUNCTIONS[name]
    model = Between(function)
    assert layout_of(model, IMAGES) == expected
    before = torch.get_rng_state()
    scores = pathex.score(model, "snip", [(IMAGES, torch.arange(len(IMAGES)) % 4)])
    assert torch.equal(before, torch.get_rng_state())
    assert all(score.isfinite().all() for score in scores.values())


def test_only_images_in_float32_on_networks_with_convolutions() -> None:
    conv = Between(lambda x: x)
    assert layout_of(conv.double(), IMAGES.double()) == AS_IT_IS
    assert layout_of(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), IMAGES) == AS_IT_IS
    assert layout_of(nn.Sequential(nn.Linear(3, 2)), torch.randn(4, 3)) == AS_IT_IS
    assert layout_of(nn.Sequential(nn.Conv1d(3, 2, 1)), torch.randn(4, 3, 5)) == AS_IT_IS


def test_what_always_raises_does_so_when_it_is_scored() -> None:
    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("a network that fails")

    model = Between(lambda x: x)
    model.function = fail
    assert layout_of(model, IMAGES) == AS_IT_IS
    with pytest.raises(RuntimeError, match="a network that fails"):
        pathex.score(model, "px", IMAGES)


# -- narrow convolutions -----------------------------------------------------------------------------------------------


class _Own(nn.Module):
    """A convolution of the user's own, called in one of many ways."""

    def __init__(self, call: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 8, 1, 1))
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, self.weight)


class _SubClass(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight * 2, None)


def _aten(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.aten.convolution(x, weight, None, [2, 2], [0, 0], [1, 1], False, [0, 0], 1)


NARROW: dict[str, Callable[[], nn.Module]] = {
    "module": lambda: nn.Conv2d(8, 16, 1, stride=2),
    "one stride": lambda: nn.Conv2d(8, 16, 1, stride=(1, 2)),
    "subclass": lambda: _SubClass(8, 16, 1, stride=2),
    "functional": lambda: _Own(lambda x, weight: F.conv2d(x, weight, None, (2, 2))),
    "keywords": lambda: _Own(lambda x, weight: F.conv2d(weight=weight, stride=2, input=x)),
    "torch": lambda: _Own(lambda x, weight: torch.conv2d(x, weight, stride=2)),
    "convolution": lambda: _Own(lambda x, w: torch.convolution(x, w, None, [2, 2], [0, 0], [1, 1], False, [0, 0], 1)),
    "aten": lambda: _Own(_aten),
    "scripted": lambda: torch.jit.script(nn.Conv2d(8, 16, 1, stride=2)),
    "timm, same padding": lambda: timm.layers.Conv2dSame(8, 16, 1, stride=2),
    "timm, standardised": lambda: timm.layers.StdConv2d(8, 16, 1, stride=2),
    "timm, scaled": lambda: timm.layers.ScaledStdConv2dSame(8, 16, 1, stride=2),
    "timm, by name": lambda: timm.layers.create_conv2d(8, 16, 1, stride=2, padding="same"),
    "transposed, few outputs": lambda: nn.ConvTranspose2d(8, 4, 1, stride=2, output_padding=1),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "not strided": lambda: nn.Conv2d(8, 16, 1),
    "larger kernel": lambda: nn.Conv2d(8, 16, (1, 2), stride=2),
    "groups": lambda: nn.Conv2d(8, 16, 1, stride=2, groups=2),
    "one channel a group": lambda: nn.Conv2d(8, 8, 1, stride=2, groups=8),
    "transposed, many outputs": lambda: nn.ConvTranspose2d(8, 16, 1, stride=2, output_padding=1),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", NARROW)
def test_narrow_strided_convolutions_keep_the_network_as_it_is(name: str) -> None:
    assert layout_of(Between(NARROW[name]()), IMAGES) == AS_IT_IS


@pytest.mark.parametrize("name", OTHERS)
def test_other_convolutions_do_not(name: str) -> None:
    model = Between(OTHERS[name]())
    assert layout_of(model, IMAGES) == LAST
    assert not breaks_channels_last(model)


def test_sixteen_channels_are_enough() -> None:
    assert layout_of(Between(nn.Conv2d(16, 8, 1, stride=2), channels=16), IMAGES) == LAST
    assert layout_of(Between(nn.Conv2d(15, 8, 1, stride=2), channels=15), IMAGES) == AS_IT_IS


def test_modules_are_known_without_a_pass() -> None:
    assert breaks_channels_last(Between(NARROW["module"]()))
    assert breaks_channels_last(Between(NARROW["subclass"]()))


# -- scores ------------------------------------------------------------------------------------------------------------


class Layouts(TorchDispatchMode):
    """Counts the backward passes of convolutions by whether their images are in channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.back: Counter[bool] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            x = args[1]
            self.back[x.is_contiguous(memory_format=LAST) and not x.is_contiguous()] += 1
        return func(*args, **(kwargs or {}))


ONCE: list[tuple[str, dict[str, Any]]] = [
    ("px", {}),
    ("px", {"calibration": "running"}),
    ("ntk-sap", {}),
    ("ntk-sap", {"inputs": "data", "calibration": "train"}),
    ("snip", {}),
    ("snip", {"calibration": "batch"}),
    ("ntk-diagonal", {"projections": 2}),
    ("fisher-diagonal", {"projections": 2}),
    ("prospr", {"first_order": True, "steps": 1}),
]
TWICE: list[tuple[str, dict[str, Any]]] = [
    ("grasp", {}),
    ("grasp", {"calibration": "batch"}),
    ("ntk-sap", {"exact": True}),
    ("prospr", {"steps": 1}),
]


def _scores(model: nn.Module, method: str, options: dict[str, Any]) -> tuple[dict[str, Tensor], set[bool]]:
    with Layouts() as layouts:
        scores = pathex.score(model, method, [(IMAGES, torch.arange(len(IMAGES)) % 4)], **options)
    return scores, set(layouts.back)


@pytest.mark.parametrize(
    ("method", "options", "last"), [*((*case, True) for case in ONCE), *((*case, False) for case in TWICE)]
)
def test_the_layout_changes_rounding_only(
    method: str, options: dict[str, Any], last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Between(nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()))
    found, layouts = _scores(model, method, options)
    assert layouts == {last}
    monkeypatch.setattr("pathex.scores._problem.layout_of", lambda *_, **__: AS_IT_IS)
    expected, layouts = _scores(model, method, options)
    assert layouts == {False}
    for name, score in expected.items():
        torch.testing.assert_close(found[name], score, rtol=1e-4, atol=1e-5 * float(score.abs().max()))


@pytest.mark.parametrize("method", ["px", "ntk-sap", "prospr"])
def test_the_layout_is_tried_once_for_all_rounds(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[torch.memory_format] = []

    def once(*args: Any, **kwargs: Any) -> torch.memory_format:
        tried.append(layout_of(*args, **kwargs))
        return tried[-1]

    monkeypatch.setattr("pathex.scores._problem.layout_of", once)
    options: dict[str, Any] = {"first_order": True} if method == "prospr" else {}
    data = [(IMAGES, torch.arange(len(IMAGES)) % 4)]
    pathex.prune(Between(lambda x: x), method, sparsity=0.5, data=data, rounds=3, progress=False, **options)
    assert tried == [LAST]
