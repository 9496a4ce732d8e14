"""Connectivity against the deletion of one weight after another, and networks of torchvision and timm as a whole."""

import math
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import StdConv2d
from torch import nn
from torchvision.models import DenseNet, ResNet
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.resnet import Bottleneck

import pathex
from brute_force.cases import CASES, Beside, Branches, Wired
from brute_force.liveness import by_deletion
from pathex.errors import MaskMismatch, UnsupportedOperation
from pathex.graph import Inputs, trace
from pathex.masks import all_kept, prunable_weights
from pathex.paths import connectivity, count_paths, has_empty_units, record, replay, replay_open, roles
from paths.oracle import calibrated
from refusals import refused
from snapshots import assert_same


def _one_head(attend):
    """Over tokens ``(N, T, 4)``, from one weight."""
    return Wired(lambda net, x: net.proj(attend(net.qkv(x))), qkv=nn.Linear(4, 12), proj=nn.Linear(4, 4))


def _fused(qkv, **how):
    return F.scaled_dot_product_attention(*qkv.chunk(3, -1), **how)


def _written_out(qkv):
    q, k, v = qkv.unflatten(-1, (3, -1)).unbind(2)
    return (q @ k.transpose(1, 2) * 0.7).softmax(-1) @ v


def _two_heads():
    heads = nn.MultiheadAttention(4, 2, batch_first=True)
    return Wired(lambda net, x: net.heads(x, x, x, need_weights=False)[0], heads=heads)


def _selected(net, x):
    """Selective kernels: shares of two branches."""
    branches = torch.stack([net.one(x), net.two(x)], 1)
    shares = torch.stack([net.sum(branches.sum(1)), branches[:, 1]], 1).softmax(1)
    return net.out((branches * shares).sum(1))


def _squeezed(gate, value):
    """Squeeze and excitation."""

    def form(net, x):
        y = net.conv(x)
        return net.head(value(y, net.gate(net.up(net.act(net.down(y.mean((2, 3), keepdim=True)))))))

    convs = {"conv": nn.Conv2d(2, 4, 2), "down": nn.Conv2d(4, 2, 1), "up": nn.Conv2d(2, 4, 1)}
    return Wired(form, gate=gate, act=nn.ReLU(), head=nn.Conv2d(4, 2, 2), **convs)


def _gated(form):
    """Two branches of one input."""
    layers = {"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "out": nn.LazyLinear(2)}
    model = Wired(lambda net, x: net.out(form(x, net.a, net.b)), **layers)
    model(torch.ones(1, 3))
    return model


GATED = {
    "difference": lambda x, a, b: a(x) - b(-x) * -0.5,
    "gate": lambda x, a, b: a(x) * b(x).sigmoid(),
    "rest of a gate": lambda x, a, b: a(x) * (1 - b(x).sigmoid()),
    "highway": lambda x, a, b: (gate := b(x).sigmoid()) * a(x) + (1 - gate) * x,
    "interpolation": lambda x, a, b: torch.lerp(x, a(x), b(x).sigmoid()),
    "two gates": lambda x, a, b: x * (a(x).sigmoid() * b(x).sigmoid()),
    "mean of gates": lambda x, a, b: x * (a(x).sigmoid() + b(x).sigmoid()) / 2,
    "gate in parts": lambda x, a, b: torch.cat([x, x], 1) * torch.cat([a(x).sigmoid(), b(x).sigmoid()], 1),
    "product": lambda x, a, b: a(x) * b(x),
    "gated smoothly": lambda x, a, b: a(x) * F.silu(b(x)),
    "quotient": lambda x, a, b: a(x) / (1 + b(x).sigmoid()),
    "shares": lambda x, a, b: a(x).softmax(1) * b(x),
    "joined": lambda x, a, b: torch.cat([a(x), x, F.silu(b(a(x)))], 1),
}


def _depthwise_gate():
    def form(net, x):
        gate, first, second = net.proj(x).split((4, 2, 2), 1)
        return net.head(gate * torch.cat([first, net.deep(second)], 1))

    return Wired(form, proj=nn.Conv2d(2, 8, 1), deep=nn.Conv2d(2, 2, 3, padding=1, groups=2), head=nn.Conv2d(4, 2, 2))


def _tokens(block):
    def form(net, x):
        y = net.stem(x)
        return net.head((y + net.block(net.norm(y))).mean(1))

    return Wired(form, stem=nn.Linear(2, 4), norm=nn.LayerNorm(4), block=block, head=nn.Linear(4, 2))


def _alone(block):
    """Attention without a way around it."""
    return nn.Sequential(nn.Linear(2, 4), block, nn.Linear(4, 2))


def _upsampled():
    branches = Branches(nn.Conv2d(1, 2, 1), nn.Identity(), join="cat")
    return nn.Sequential(branches, nn.GELU(), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(3, 1, 2))


def _normalised(norm):
    return nn.Sequential(nn.Linear(3, 4), norm(4), nn.ReLU(), nn.Linear(4, 2))


NORMS = {"layer norm": nn.LayerNorm, "root mean square": nn.RMSNorm, "batch norm": nn.BatchNorm1d}
NORMS["group norm"] = partial(nn.GroupNorm, 2)
SHARED = ("mlp", "prelu", "residual", "dilated", "depthwise", "max-pool", "average-branch", "transposed", "shared")
NETWORKS = {
    **{name: (CASES[name].make, CASES[name].shape) for name in SHARED},
    "upsampled": (_upsampled, (1, 3, 3)),
    "squeezed": (lambda: _squeezed(nn.Sigmoid(), torch.mul), (2, 3, 3)),
    "squeezed by a piecewise gate": (lambda: _squeezed(nn.Hardsigmoid(), torch.mul), (2, 3, 3)),
    "squeezed by a doubled gate": (lambda: _squeezed(nn.Sigmoid(), lambda y, gate: y * (2 * gate)), (2, 3, 3)),
    "squeezed by an open gate": (lambda: _squeezed(nn.ReLU(), torch.mul), (2, 3, 3)),
    "glu": (lambda: nn.Sequential(nn.Linear(3, 6), nn.GLU(), nn.Linear(3, 2)), (3,)),
    "depthwise gate": (_depthwise_gate, (2, 3, 3)),
    "attention": (lambda: _tokens(_one_head(_fused)), (3, 2)),
    "attention written out": (lambda: _tokens(_one_head(_written_out)), (3, 2)),
    "attention alone": (lambda: _alone(_one_head(_written_out)), (3, 2)),
    "two heads": (lambda: _tokens(_two_heads()), (3, 2)),
    "two heads alone": (lambda: _alone(_two_heads()), (3, 2)),
    "causal attention": (lambda: _tokens(_one_head(partial(_fused, is_causal=True))), (3, 2)),
    "selective": (lambda: Wired(_selected, **{name: nn.Linear(2, 2) for name in ("one", "two", "sum", "out")}), (2,)),
    "standardised": (lambda: nn.Sequential(StdConv2d(2, 3, 2), nn.ReLU(), StdConv2d(3, 2, 2)), (2, 3, 3)),
    **{name: (partial(_gated, form), (3,)) for name, form in GATED.items()},
    **{name: (partial(_normalised, norm), (3,)) for name, norm in NORMS.items()},
}


def random_mask(model, seed, density):
    """Now and then a whole weight is empty."""
    source = torch.Generator().manual_seed(seed)
    mask = {}
    for name, keep in everything(model).items():
        mask[name] = torch.rand(keep.shape, generator=source) < density
        mask[name] &= torch.rand((), generator=source) > 0.08
    return mask


def everything(model):
    return all_kept(prunable_weights(model))


def _named(networks, of_each):
    return {f"{name}.{key}": entry for name in networks for key, entry in of_each[name].items()}


def agree(networks, masks, shape):
    mask = _named(networks, masks)
    expected = _named(networks, {name: by_deletion(net, masks[name], shape) for name, net in networks.items()})
    found = connectivity(networks, mask, torch.randn(2, *shape))
    assert_same(found.effective, expected)
    assert found.disconnected == sum(int((mask[name] & ~connected).sum()) for name, connected in expected.items())
    assert found.dead_layers == [name for name, connected in expected.items() if not connected.any()]
    for name, dead in found.dead_channels.items():
        units = _units(networks, expected, name)
        assert dead == [unit for unit, weights in enumerate(units) if not weights.any()]
        assert found.channels[name] == len(units)


def _units(model, weights, name):
    """The weights of each output channel."""
    layer = model.get_submodule(name.rpartition(".")[0])
    if isinstance(layer, nn.ConvTranspose2d):
        return [unit for group in weights[name].chunk(layer.groups) for unit in group.unbind(1)]
    return list(weights[name])


@pytest.mark.parametrize("shape", dict.fromkeys(shape for _, shape in NETWORKS.values()), ids=str)
def test_connected_weights_are_those_whose_deletion_shows(shape):
    torch.manual_seed(0)
    networks = Beside({name: make() for name, (make, own) in NETWORKS.items() if own == shape})
    for seed, density in enumerate((0.6, 0.4, 0.25, 0.9, 0.9)):
        agree(networks, {n: random_mask(net, 10 * seed + len(n), density) for n, net in networks.items()}, shape)
    full = {name: everything(network) for name, network in networks.items()}
    for place in range(max(map(len, full.values()))):
        empty = {name: list(whole)[min(place, len(whole) - 1)] for name, whole in full.items()}
        agree(networks, {n: whole | {empty[n]: ~whole[empty[n]]} for n, whole in full.items()}, shape)


def test_more_paths_than_float32_counts():
    model = nn.Sequential(*(nn.Conv2d(1, 1, 3, padding=1) for _ in range(50)))
    x, mask = torch.randn(1, 1, 3, 3), everything(model)
    assert connectivity(model, mask, x).disconnected == 0
    mask["25.weight"][:] = False
    found = connectivity(model, mask, x)
    assert len(found.dead_layers) == 50
    assert found.disconnected == sum(int(keep.sum()) for keep in mask.values())
    blocks = (Branches(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Identity()) for _ in range(45))
    model = nn.Sequential(nn.Conv2d(1, 4, 1), *blocks, nn.Flatten(), nn.Linear(36, 2))
    mask = {name: torch.rand(keep.shape) < 0.5 for name, keep in everything(model).items()}
    reached = connectivity(model, mask, x).effective["1.branches.0.weight"]
    assert reached.any() and not (reached & ~mask["1.branches.0.weight"]).any()


def test_neither_parameters_nor_statistics_nor_images_play_a_part():
    model = CASES["residual"].make()
    for entry in model.state_dict().values():
        if entry.is_floating_point():
            entry.fill_(math.nan)
    assert connectivity(model, everything(model), torch.full((1, 1, 3, 3), math.nan)).disconnected == 0


@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_mask_may_name_biases(layer):
    model, x = layer(2, 2, 1), torch.ones(1, 2, 1, 1)
    mask = {"weight": torch.ones(2, 2, 1, 1, dtype=torch.bool), "bias": torch.tensor([True, False])}
    found = connectivity(model, mask, x)
    assert (found.disconnected, found.dead_layers, found.dead_channels) == (1, ["bias"], {"weight": [], "bias": [0, 1]})
    assert has_empty_units(trace(model, x), mask)


@pytest.mark.parametrize("norm", NORMS)
def test_a_mask_may_name_weights_of_norms(norm):
    model = _normalised(NORMS[norm])
    mask = {**everything(model), "1.weight": torch.tensor([True, True, False, True])}
    found = connectivity(model, mask, torch.randn(2, 3))
    assert found.effective["1.weight"].tolist() == [True, True, False, True]
    assert found.disconnected == 3 + 2


CHOICES = [
    lambda y: y.max(0).values,
    lambda y: y.amax(0),
    lambda y: y.sort(0)[0][1],
    lambda y: y.sum(0).topk(3, 1).values,
    lambda y: torch.maximum(y[0], y[1]),
    lambda y: y.sum(0).masked_fill(y[0] < 1.5, 0.0),
    lambda y: y.sum(0).index_put((y[0] < 1.5,), torch.zeros((), dtype=y.dtype)),
    lambda y: y.sum(0) * (y[0] > 1.5),
    lambda y: torch.where(y[0] > y[1], y[0], y[1]),
]


def _chosen(net, x):
    parts = zip(CHOICES, net.a, net.b, net.heads, strict=True)
    return sum(head(choose(torch.stack([a(x), b(x)]))) for choose, a, b, head in parts)


def test_whatever_may_be_chosen_is_connected():
    layers = {name: nn.ModuleList(nn.Linear(5, 8) for _ in CHOICES) for name in "ab"}
    heads = nn.ModuleList(nn.Linear(3 if number == 3 else 8, 2) for number in range(len(CHOICES)))
    model = Wired(_chosen, **layers, heads=heads)
    assert connectivity(model, everything(model), torch.randn(1, 5)).disconnected == 0
    for images in (1, 3):  # a choice along another dimension leaves their number
        assert len(replay_open(model, torch.ones(images, 5), statistics="running", per_sample="one")) == images


def test_values_written_where_values_say_have_no_open_reading():
    model = Wired(lambda net, x: net.b(_swapped(net.a(x))), a=nn.Linear(5, 8), b=nn.Linear(8, 2))
    with refused("no rule to read index_put.*takes entries by values", UnsupportedOperation):
        connectivity(model, everything(model), torch.randn(3, 5))


def _swapped(x):
    return x.index_put((torch.arange(len(x)), x.argmax(1)), x[:, 0])


_VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 4}
_SWIN = {"img_size": 32, "embed_dim": 12, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4, "num_classes": 4}
# Network, side of its images, rounds: over more of them the faint attention of so narrow a Swin goes as a whole.
TRANSFORMERS = {
    "vit": (partial(timm.models.VisionTransformer, **_VIT), 16, 10),
    "swin": (partial(timm.models.SwinTransformer, **_SWIN), 32, 2),
}


@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_synflow_keeps_the_values_of_attention_and_tells_images_apart(name):
    torch.manual_seed(0)
    make, size, rounds = TRANSFORMERS[name]
    model, x = make().eval(), torch.randn(4, 3, size, size)
    mask = pathex.prune(model, "synflow", per_sample="one", sparsity=0.9, rounds=rounds, data=x, progress=False).mask
    spread = model(x).std(0).mean()
    pathex.make_permanent(model, mask)
    assert all(keep.chunk(3)[2].any() for weight, keep in mask.items() if weight.endswith("qkv.weight"))
    assert model(x).std(0).mean() > 0.1 * spread


def _torchvision(name):
    plain = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return partial(torchvision.models.get_model, name, weights=None, num_classes=4, **plain)


def _timm(name):
    return partial(timm.create_model, name, num_classes=4)


# Network, and the side of its images.
FAST = {
    "torchvision densenet": (lambda: DenseNet(8, (2, 2, 2), num_init_features=16, num_classes=4), 32),
    "torchvision resnext": (partial(ResNet, Bottleneck, [1] * 4, num_classes=4, groups=8, width_per_group=4), 32),
    "timm resnet10t": (_timm("resnet10t"), 32),
}
_REGNET = {"depth": 6, "w_0": 16, "w_a": 20.0, "w_m": 2.2, "group_width": 8}
SLOW = {
    "torchvision regnet_x": (lambda: RegNet(BlockParams.from_init_params(**_REGNET), num_classes=4), 32),
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
    model, x = make().double(), torch.randn(8, 3, size, size, dtype=torch.float64)  # two give variances near zero
    scores = pathex.score(model, "px", data=x)
    assert list(scores) == [weight for weight in prunable_weights(model) if not weight.startswith(UNUSED)]
    for weight, score in scores.items():
        assert score.isfinite().all() and (score >= 0).all() and score.any(), weight
    expected = calibrated(model, x)(x)
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(record(model, x).output, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "depths", [(1, 1, 1, 1), pytest.param((3, 8, 36, 3), marks=pytest.mark.slow)], ids=["shallow", "as ResNet-152"]
)
def test_networks_are_connected(depths):
    model = ResNet(Bottleneck, list(depths), num_classes=2, width_per_group=8)
    found = connectivity(model, everything(model), torch.randn(1, 3, 64, 64))
    assert found.disconnected == 0 and found.dead_layers == []


class _Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(*sizes, bias=False) for sizes in ((4, 6), (3, 6), (6, 2)))

    def forward(self, x, y):
        return self.c((self.a(x) + self.b(y)).relu())


X, Y = torch.randn(3, 4), torch.randn(3, 3)


@pytest.mark.parametrize("given", [(X, Y), {"x": X, "y": Y}, {"y": Y, "x": X}, Inputs((X, Y))])
def test_several_inputs_in_any_form(given):
    model = _Two()
    mask = everything(model)
    mask["a.weight"][0], mask["b.weight"][0] = False, False
    assert connectivity(model, mask, given).disconnected == 2  # of the layer behind
    assert count_paths(model, given, mask).total == 2 * 5 * 7
    assert set(roles(model, mask, given)) == set(mask)
    recording = record(model, given)
    torch.testing.assert_close(recording.output, model(X, Y))
    torch.testing.assert_close(replay(model, given, recording, coefficients="plain"), recording.output)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"a.wait": torch.ones(6, 4).bool()}, "the mask names 'a.wait', which is no parameter"),
        ({"a.weight": torch.ones(6, 5).bool()}, r"'a.weight' must be a bool tensor of shape \(6, 4\), not .*\(6, 5\)"),
        ({"a.weight": torch.ones(6, 4)}, "'a.weight' must be a bool tensor .* not torch.float32"),
    ],
)
def test_a_mask_that_does_not_fit(entry, message):
    for read in (connectivity, roles, lambda model, mask, x: count_paths(model, x, mask)):
        with refused(message, MaskMismatch):
            read(_Two(), entry, (X, Y))
