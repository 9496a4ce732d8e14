"""What `px` keeps of transformers, ConvNeXt and depthwise convolutions: no block and no attention is cut."""

import pytest
import timm
import torch
from torch import nn

import pathex
from brute_force.cases import Wired
from pathex.masks import all_kept, prunable_weights
from pathex.paths import roles

pytestmark = pytest.mark.filterwarnings("ignore:px is derived for piecewise-linear", "ignore:read as one")


LARGE = [
    ("vit_tiny_patch16_224", {"img_size": 64}, 64),
    ("swin_tiny_patch4_window7_224", {"img_size": 56}, 56),
    ("convnext_atto", {}, 64),
    ("tf_efficientnet_lite0", {}, 64),
]
NETWORKS = [
    ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2}, 32),
    ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 40)}, 32),
    *(pytest.param(*large, marks=pytest.mark.slow) for large in LARGE),
]


def _parts(model, x):
    return roles(model, all_kept(prunable_weights(model)), x)


@pytest.mark.parametrize(("name", "options", "size"), NETWORKS)
def test_networks_are_cut_nowhere(name, options, size):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **options)
    x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    result = pathex.prune(model, "px", sparsity=0.9, data=x, rounds=3 if size == 32 else 5)
    mask, parts = result.mask, _parts(model, x[:1])
    assert mask.kept == round(0.1 * mask.total)
    assert result.report.dead_layers == []
    for layer, of_layer in parts.items():
        for part in of_layer:
            kept = int((mask[layer] & part).sum())
            assert kept >= max(1, int(0.1 * mask.density * int(part.sum()))), layer
    assert all(len(parts[layer]) == 3 for layer in mask if ".qkv." in layer), "query, key and value"


def _fused(net, x):
    """Attention and a gated unit, each with its weights in one."""
    q, k, v = net.qkv(x).chunk(3, -1)
    x = x + (q @ k.transpose(-2, -1)).softmax(-1) @ v
    value, gate = net.gated(x).chunk(2, -1)
    return net.head((value * gate.sigmoid()).mean(1))


def test_the_roles_of_fused_weights():
    model = Wired(_fused, qkv=nn.Linear(4, 12), gated=nn.Linear(4, 8), head=nn.Linear(4, 2))
    found = _parts(model, torch.randn(1, 3, 4))
    rows = {
        name: sorted(tuple(part.any(1).nonzero().squeeze(1).tolist()) for part in parts)
        for name, parts in found.items()
    }
    assert rows["qkv.weight"] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]
    assert rows["gated.weight"] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert rows["head.weight"] == [(0, 1)]


def test_a_network_without_products_has_one_part_a_layer():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    found = _parts(model, torch.randn(1, 3, 8, 8))
    assert all(len(parts) == 1 and parts[0].all() for parts in found.values())
