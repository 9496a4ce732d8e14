"""Networks of torchvision and timm: read to the end, every prunable weight scored, the plain forward pass recorded."""

from functools import partial

import pytest
import timm
import torch
import torchvision
from torchvision.models import DenseNet, ResNet
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.resnet import Bottleneck

import pathex
from pathex.masks import all_kept, prunable_weights
from pathex.paths import connectivity, record
from paths.oracle import calibrated


def _torchvision(name):
    plain = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return partial(torchvision.models.get_model, name, weights=None, num_classes=4, **plain)


def _timm(name):
    return partial(timm.create_model, name, num_classes=4)


def _regnet():
    return RegNet(BlockParams.from_init_params(depth=6, w_0=16, w_a=20.0, w_m=2.2, group_width=8), num_classes=4)


def _resnext():
    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=4, groups=8, width_per_group=4)


# Network, and the side of its images.
FAST = {
    "torchvision densenet": (lambda: DenseNet(8, (2, 2, 2), num_init_features=16, num_classes=4), 32),
    "torchvision resnext": (_resnext, 32),
    "timm resnet10t": (_timm("resnet10t"), 32),
}
SLOW = {
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


@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_networks(name):
    make, size = {**FAST, **SLOW}[name]
    torch.manual_seed(0)
    model, x = make().double(), torch.randn(2, 3, size, size, dtype=torch.float64)
    scores = pathex.score(model, "px", data=x)
    assert list(scores) == list(prunable_weights(model))
    for weight, score in scores.items():
        assert score.isfinite().all(), weight
        assert (score >= 0).all(), weight
        assert score.any() or weight.startswith(UNUSED), weight
    expected = calibrated(model, x)(x)
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(record(model, x).output, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "depths", [(1, 1, 1, 1), pytest.param((3, 8, 36, 3), marks=pytest.mark.slow)], ids=["shallow", "as ResNet-152"]
)
def test_networks_are_connected(depths):
    model = ResNet(Bottleneck, list(depths), num_classes=2, width_per_group=8)
    found = connectivity(model, all_kept(prunable_weights(model)), torch.randn(1, 3, 64, 64))
    assert found.disconnected == 0 and found.dead_layers == []
