"""Networks of torchvision and timm: read to the end, every prunable weight scored, the plain forward pass recorded."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import pathex
from pathex.masks import prunable_weights
from pathex.paths import calibrate, connectivity, record
from paths.oracle import with_statistics


def _torchvision(name: str, **options: Any) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, num_classes=4, **options)


def _timm(name: str, **options: Any) -> nn.Module:
    return timm.create_model(name, num_classes=4, **options)


def _regnet(**options: Any) -> nn.Module:
    from torchvision.models.regnet import BlockParams, RegNet

    return RegNet(BlockParams.from_init_params(depth=6, w_0=16, w_a=20.0, w_m=2.2, group_width=8), num_classes=4)


Make = Callable[[], nn.Module]

FAST: dict[str, tuple[Make, int]] = {
    "torchvision squeezenet": (lambda: _torchvision("squeezenet1_1"), 48),
    "torchvision regnet_x": (_regnet, 32),
    "torchvision densenet": (
        lambda: torchvision.models.DenseNet(8, (2, 2, 2), num_init_features=16, num_classes=4),
        32,
    ),
    "torchvision resnext": (
        lambda: torchvision.models.ResNet(
            torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=4, groups=8, width_per_group=4
        ),
        32,
    ),
    "timm resnet10t": (lambda: _timm("resnet10t"), 32),
    "timm repvgg": (lambda: _timm("repvgg_a0"), 32),
}
SLOW: dict[str, tuple[Make, int]] = {
    "torchvision resnet18": (lambda: _torchvision("resnet18"), 32),
    "torchvision mnasnet": (lambda: _torchvision("mnasnet0_5"), 32),
    "torchvision mobilenet_v2": (lambda: _torchvision("mobilenet_v2", width_mult=0.35), 32),
    "torchvision shufflenet": (lambda: _torchvision("shufflenet_v2_x0_5"), 32),
    "timm resnetblur": (lambda: _timm("resnetblur18"), 32),
    "timm dla46_c": (lambda: _timm("dla46_c"), 64),
    "timm lite": (lambda: _timm("tf_efficientnet_lite0"), 32),
    "timm regnetx": (lambda: _timm("regnetx_002"), 32),
    "torchvision resnet50": (lambda: _torchvision("resnet50"), 64),
    "torchvision wide_resnet50_2": (lambda: _torchvision("wide_resnet50_2"), 32),
    "torchvision resnext50": (lambda: _torchvision("resnext50_32x4d"), 32),
    "torchvision alexnet": (lambda: _torchvision("alexnet"), 64),
    "torchvision vgg11": (lambda: _torchvision("vgg11"), 32),
    "torchvision vgg16_bn": (lambda: _torchvision("vgg16_bn"), 32),
    "torchvision densenet121": (lambda: _torchvision("densenet121"), 32),
    "torchvision googlenet": (lambda: _torchvision("googlenet", init_weights=False), 64),
    "torchvision inception_v3": (lambda: _torchvision("inception_v3", init_weights=False), 96),
    "torchvision regnet_x_400mf": (lambda: _torchvision("regnet_x_400mf"), 64),
    "timm resnet26": (lambda: _timm("resnet26"), 64),
    "timm dla34": (lambda: _timm("dla34"), 64),
    "timm hrnet": (lambda: _timm("hrnet_w18_small"), 64),
    "timm darknet": (lambda: _timm("darknet17"), 64),
    "timm inception_v4": (lambda: _timm("inception_v4"), 96),
    "timm res2net": (lambda: _timm("res2net50_26w_4s"), 64),
    "timm xception": (lambda: _timm("xception41"), 64),
}
UNUSED = ("AuxLogits.", "aux1.", "aux2.")  # heads that only run while training


def _network(entry: tuple[Make, int]) -> tuple[nn.Module, Tensor]:
    make, size = entry
    torch.manual_seed(0)
    return make(), torch.randn(2, 3, size, size)


def _assert_scores(model: nn.Module, x: Tensor) -> None:
    scores = pathex.score(model, "px", data=x)
    assert list(scores) == list(prunable_weights(model))
    for name, score in scores.items():
        assert score.isfinite().all(), name
        assert (score >= 0).all(), name
        assert score.any() or name.startswith(UNUSED), name


def _assert_records(model: nn.Module, x: Tensor) -> None:
    recording = record(model, x)
    expected = with_statistics(model, x, recording.statistics)(x)
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(recording.output, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_networks(name: str) -> None:
    model, x = _network({**FAST, **SLOW}[name])
    _assert_scores(model, x)
    _assert_records(model.double(), x.double())


def test_a_dense_network_is_connected() -> None:
    model, _ = _network(FAST["torchvision densenet"])
    mask = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable_weights(model).items()}
    assert connectivity(model, mask, torch.randn(1, 3, 64, 64)).disconnected == 0


@pytest.mark.slow
def test_a_deep_network_is_connected() -> None:
    """As deep as ResNet-152, at an eighth of its width."""
    model = torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [3, 8, 36, 3], num_classes=2, width_per_group=8
    )
    mask = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable_weights(model).items()}
    found = connectivity(model, mask, torch.randn(1, 3, 64, 64))
    assert found.disconnected == 0
    assert found.dead_layers == []


def test_calibration_calls_match_the_norms_of_a_network() -> None:
    model, x = _network(FAST["timm resnet10t"])
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(calibrate(model, x, chunk=1)) == len(norms)
