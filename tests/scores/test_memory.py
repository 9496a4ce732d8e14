"""The memory budget is kept: what PyTorch allocates in a call, followed by its profiler."""

import re
import warnings

import pytest
import torch
from torch import nn

import pathex
from benchmarks.measure import tensor_peak
from brute_force.cases import Wired
from pathex.errors import InvalidInput, PathexWarning

COUNT, SIZE = 40, 32
# Images of their own; and what is on the way inside of attention, which is counted as one function.
LOOSE = {"ResNet-prospr": 1.05, "ResNet-ntk-sap": 1.05, "attention-px": 1.05, "attention-snip": 1.15}
CPU = torch.device("cpu")


def _attending(net, x):
    x = net.patches(x).flatten(2).transpose(1, 2)
    x = x + net.attention(x, x, x, need_weights=False)[0]
    return net.head((x + net.narrow(nn.functional.gelu(net.wide(x)))).mean(1))


def _network(kind):
    torch.manual_seed(0)
    if kind == "ResNet":
        return pathex.models.CifarResNet(8, num_classes=5, width=8)
    layers = {"patches": nn.Conv2d(3, 24, 4, 4), "attention": nn.MultiheadAttention(24, 4, batch_first=True)}
    return Wired(_attending, **layers, wide=nn.Linear(24, 48), narrow=nn.Linear(48, 24), head=nn.Linear(24, 5))


def _images(count=COUNT):
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)), torch.arange(count) % 5


def _peak(model, method, memory, count=COUNT, **options):
    images = _images(count)

    def call():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "px is derived|px-literal is derived|calibrating on", PathexWarning)
            pathex.score(model, method, images, memory=memory, **options)

    return tensor_peak(CPU, call)


FIXED = {"calibration": "batch"}
CASES = [
    ("ResNet", "px", {}),
    ("ResNet", "px", {"calibration": "running"}),
    ("ResNet", "px-literal", {}),
    ("ResNet", "snip", FIXED),
    ("ResNet", "grasp", FIXED),
    ("ResNet", "prospr", FIXED),
    ("ResNet", "ntk-sap", {}),
    ("ResNet", "ntk-diagonal", {"projections": 2}),
    ("ResNet", "fisher-diagonal", {"projections": 2}),
    ("attention", "px", {}),
    ("attention", "snip", FIXED),
]


@pytest.mark.parametrize(("kind", "method", "options"), CASES, ids=[f"{k}-{m}-{o}" for k, m, o in CASES])
def test_the_budget_is_kept(kind, method, options):
    model = _network(kind)
    everything = _peak(model, method, "1GiB", **options)
    budget = everything // 2
    assert budget / 2 < _peak(model, method, budget, **options) <= budget * LOOSE.get(f"{kind}-{method}", 1)


def test_what_does_not_fit_is_said_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pathex.prune(_network("ResNet"), "px", sparsity=0.5, data=_images(3), rounds=3, memory="20KiB", progress=False)
    beside, image, calibration = [str(warning.message) for warning in caught]
    assert re.fullmatch(
        r"weights, scores and images take about 0\.\d+ MiB of memory, more than half .* 0.01953 MiB.*", beside
    )
    assert re.match(r"one image takes 0\.\d+ MiB of memory, more than the budget of 0.01953 MiB leaves", image)
    assert re.match(
        r"calibrating on 3 images at once takes about .* in parts it takes the time of 5 passes; allow more memory or",
        calibration,
    )
    with pytest.raises(InvalidInput, match="weights, scores and images take about"):
        pathex.score(_network("ResNet"), "px", _images(3), memory="20KiB", strict=True)


def test_one_image_that_does_not_fit_is_an_error_with_strict():
    model = nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) for _ in range(20)], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InvalidInput, match=r"one image takes .* more than the budget of .* leaves"):
        pathex.score(model, "px", _images(1), memory="200KiB", strict=True)


@pytest.mark.parametrize("method", ["snip", "grasp", "px-cvpr24"])
def test_batches_that_cannot_be_cut_are_said_to_be_too_large(method):
    with pytest.warns(PathexWarning, match="a batch of 6 images takes about .* deliver smaller batches"):
        pathex.score(_network("ResNet"), method, _images(6), memory="100KiB")
