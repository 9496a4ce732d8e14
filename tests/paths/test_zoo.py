"""Networks of torchvision and timm: read to the end, every prunable weight scored, the plain forward pass recorded."""

from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import DenseNet, ResNet
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.resnet import Bottleneck

import pathex
from pathex.masks import prunable_weights
from pathex.paths import calibrate, connectivity, record
from paths.oracle import with_statistics

Make = Callable[[], nn.Module]


def _torchvision(name: str) -> Make:
    plain = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return partial(torchvision.models.get_model, name, weights=None, num_classes=4, **plain)


def _timm(name: str) -> Make:
    return partial(timm.create_model, name, num_classes=4)


def _regnet() -> nn.Module:
    return RegNet(BlockParams.from_init_params(depth=6, w_0=16, w_a=20.0, w_m=2.2, group_width=8), num_classes=4)


def _resnext() -> nn.Module:
    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=4, groups=8, width_per_group=4)


# Network, and the side of its images.
FAST: dict[str, tuple[Make, int]] = {
    "torchvision densenet": (lambda: DenseNet(8, (2, 2, 2), num_init_features=16, num_classes=4), 32),
    "torchvision resnext": (_resnext, 32),
    "timm resnet10t": (_timm("resnet10t"), 32),
}
SLOW: dict[str, tuple[Make, int]] = {
    "torchvision regnet_x": (_regnet, 32),
    "torchvision mobilenet_v2": (partial(_torchvision("mobilenet_v2"), width_mult=0.35), 32),
    **{
        f"torchvision {name}": (_torchvision(name), side)
        for side, names in {
            32: "resnet18 mnasnet0_5 shufflenet_v2_x0_5 wide_resnet50_2 resnext50_32x4d vgg11 vgg16_bn densenet121",
            48: "squeezenet1_1",
            64: "resnet50 alexnet googlenet regnet_x_400mf",
            96: "inception_v3",
        }.items()
        for name in names.split()
    },
    **{
        f"timm {name}": (_timm(name), side)
        for side, names in {
            32: "repvgg_a0 resnetblur18 tf_efficientnet_lite0 regnetx_002",
            64: "dla46_c resnet26 dla34 hrnet_w18_small darknet17 res2net50_26w_4s xception41",
            96: "inception_v4",
        }.items()
        for name in names.split()
    },
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
    model, x = _network(FAST["torchvision densenet"])
    mask = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable_weights(model).items()}
    assert connectivity(model, mask, x).disconnected == 0


@pytest.mark.slow
def test_a_deep_network_is_connected() -> None:
    """As deep as ResNet-152, at an eighth of its width."""
    model = ResNet(Bottleneck, [3, 8, 36, 3], num_classes=2, width_per_group=8)
    mask = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable_weights(model).items()}
    found = connectivity(model, mask, torch.randn(1, 3, 64, 64))
    assert found.disconnected == 0
    assert found.dead_layers == []


def test_calibration_calls_match_the_norms_of_a_network() -> None:
    model, x = _network(FAST["timm resnet10t"])
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(calibrate(model, x, chunk=1)) == len(norms)
