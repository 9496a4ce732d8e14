import pytest
import torch
from torch import nn

import pathex
from brute_force.cases import Wired
from pathex.errors import UnsupportedOperation

# Images are read in channels last where convolutions are faster so.
X, Y = torch.randn(12, 3, 8, 8), torch.arange(12) % 4
WAYS = {
    "slice": lambda x: x[:, :, ::2, ::2].flatten(1),
    "view": lambda x: x[:, :, ::2, ::2].contiguous().view(len(x), -1),
    "as_strided": lambda x: x.as_strided((len(x), 6, 4, 4), (384, 64, 16, 2)).flatten(1),
}


def network(way):
    torch.manual_seed(0)
    layers = {"conv": nn.Conv2d(3, 6, 3, padding=1), "norm": nn.BatchNorm2d(6), "head": nn.Linear(96, 4)}
    return Wired(lambda net, x: net.head(WAYS[way](torch.relu(net.norm(net.conv(x))))), **layers)


@pytest.mark.parametrize("way", ["view", "as_strided"])
@pytest.mark.parametrize("method", ["snip", "ntk-sap", "px-cvpr24", "grasp"])
def test_a_network_that_is_bound_to_a_layout_scores_as_one_that_is_not(method, way):
    expected = pathex.score(network("slice"), method, data=[(X, Y)])
    scores = pathex.score(network(way), method, data=[(X, Y)])
    for name, value in expected.items():
        torch.testing.assert_close(scores[name], value, rtol=1e-3, atol=1e-5 * float(value.abs().max()))


def test_paths_are_not_read_through_the_layout_of_memory():
    with pytest.raises(UnsupportedOperation, match="no rule to read as_strided"):
        pathex.score(network("as_strided"), "px", data=[(X, Y)])


def test_a_loss_may_view_the_outputs():
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 3))
    masks = torch.rand(12, 2, 4, 4).round()
    flat = pathex.score(network, "snip", data=[(X, masks)], loss=lambda p, y: (p.view(-1) - y.view(-1)).square().mean())
    whole = pathex.score(network, "snip", data=[(X, masks)], loss=lambda p, y: (p - y).square().mean())
    for name, value in whole.items():
        torch.testing.assert_close(flat[name], value)


def narrow_function():
    weight = nn.Parameter(torch.randn(8, 4, 1, 1))
    return Wired(lambda net, x: nn.functional.conv2d(x, net.weight, stride=2), weight=weight)


@pytest.mark.parametrize("narrow", [lambda: nn.Conv2d(4, 8, 1, stride=2), narrow_function], ids=["module", "function"])
@pytest.mark.parametrize("method", ["ntk-sap", "px", "snip"])
def test_convolutions_that_channels_last_breaks_are_read_as_they_were(method, narrow):
    # Five times, as what is written beyond the memory of a tensor does not always end the process.
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), narrow(), nn.Flatten(), nn.Linear(392, 4))
    layouts = []
    network[2].register_forward_pre_hook(lambda module, args: layouts.append(args[0].is_contiguous()))
    for _ in range(5):
        pathex.score(network, method, data=[(torch.randn(12, 3, 16, 16), Y)])
    assert method == "px" or layouts[-1]
