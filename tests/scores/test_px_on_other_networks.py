"""What `px` keeps of transformers, ConvNeXt and depthwise convolutions: no block and no attention is cut."""

from collections.abc import Callable, Mapping

import pytest
import timm
import torch
from torch import Tensor, nn

import pathex
from brute_force.cases import Wired
from pathex.masks import prunable_weights
from pathex.paths import roles

pytestmark = pytest.mark.filterwarnings("ignore:px is derived for piecewise-linear", "ignore:read as one")


def _images(size: int) -> Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))


NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], int]] = {
    "vit_tiny": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10), 64),
    "swin_tiny": (lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=56, num_classes=10), 56),
    "convnext_atto": (lambda: timm.create_model("convnext_atto", num_classes=10), 64),
    "efficientnet_lite0": (lambda: timm.create_model("tf_efficientnet_lite0", num_classes=10), 64),
}
SMALL: Mapping[str, tuple[Callable[[], nn.Module], int]] = {
    "vit of three blocks": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, num_classes=10),
        32,
    ),
    "convnext of four stages": (
        lambda: timm.create_model("convnext_atto", depths=(1, 1, 2, 1), dims=(16, 24, 32, 40), num_classes=10),
        32,
    ),
}


def _assert_nothing_is_cut(model: nn.Module, x: Tensor, rounds: int) -> None:
    result = pathex.prune(model, "px", sparsity=0.9, data=x, rounds=rounds)
    mask = result.mask
    assert mask.kept == round(0.1 * mask.total)
    assert result.report.dead_layers == []
    everything = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable_weights(model).items()}
    for name, parts in roles(model, everything, x[:1]).items():
        for part in parts:
            kept = int((mask[name] & part).sum())
            assert kept >= max(1, int(0.1 * mask.density * int(part.sum()))), name
    fused = [name for name in mask if ".qkv." in name]
    for name in fused:
        assert len(roles(model, everything, x[:1])[name]) == 3, "query, key and value"


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_are_cut_nowhere(name: str) -> None:
    make, size = SMALL[name]
    torch.manual_seed(0)
    _assert_nothing_is_cut(make(), _images(size), 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_cut_nowhere(name: str) -> None:
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    _assert_nothing_is_cut(make(), _images(size), 5)


def _fused(net: Wired, x: Tensor) -> Tensor:
    """Attention and a gated unit, each with its weights in one."""
    q, k, v = net.qkv(x).chunk(3, -1)
    x = x + (q @ k.transpose(-2, -1)).softmax(-1) @ v
    value, gate = net.gated(x).chunk(2, -1)
    return net.head((value * gate.sigmoid()).mean(1))


def test_the_roles_of_fused_weights() -> None:
    model = Wired(_fused, qkv=nn.Linear(4, 12), gated=nn.Linear(4, 8), head=nn.Linear(4, 2))
    everything = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable_weights(model).items()}
    found = roles(model, everything, torch.randn(1, 3, 4))
    rows = {
        name: sorted(tuple(part.any(1).nonzero().squeeze(1).tolist()) for part in parts)
        for name, parts in found.items()
    }
    assert rows["qkv.weight"] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]
    assert rows["gated.weight"] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert rows["head.weight"] == [(0, 1)]


def test_a_network_without_products_has_one_part_a_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    everything = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable_weights(model).items()}
    found = roles(model, everything, torch.randn(1, 3, 8, 8))
    assert all(len(parts) == 1 and parts[0].all() for parts in found.values())
