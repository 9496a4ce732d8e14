"""Small networks with what compaction has to follow, and masks that leave dead channels."""

import timm
import torch
import torch.nn.functional as F
from torch import nn

from brute_force.cases import Beside, Branches, Wired, draw, random_mask
from pathex import Mask


def conv(inputs, outputs, size=3, groups=1, norm=True, bias=False):
    """Zero-padded, with BatchNorm and ReLU behind it."""
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=bias)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU()) if norm else layer


def head(channels):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3))


def residual():
    branch = nn.Sequential(conv(6, 5), conv(5, 6))
    return nn.Sequential(conv(2, 6), Branches(nn.Identity(), branch), conv(6, 4), head(4))


def depthwise():
    return nn.Sequential(conv(2, 8, 1), conv(8, 8, groups=8), conv(8, 6, 1), conv(6, 12, groups=6), head(12))


def perceptron():
    return nn.Sequential(nn.Flatten(), nn.Linear(128, 12), nn.GELU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def flattened():
    layers = (nn.Linear(6 * 16, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    return nn.Sequential(conv(2, 6), nn.MaxPool2d(2), nn.Flatten(), *layers)


def squeezed():
    """Squeeze-and-excitation."""
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 3, 1), nn.ReLU(), nn.Conv2d(3, 8, 1), nn.Sigmoid())
    block = Wired(lambda net, x: x * net.gate(x), gate=gate)
    return nn.Sequential(conv(2, 8), block, conv(8, 4), head(4))


def shuffled():
    def form(net, x):
        left, right = net.first(x).chunk(2, 1)
        x = torch.cat([left, net.branch(right)], 1)
        n, c, h, w = x.shape
        return net.last(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))

    return Wired(form, first=conv(2, 8), branch=conv(4, 4), last=nn.Sequential(conv(8, 4), head(4)))


def attention():
    options = {"img_size": 8, "patch_size": 4, "depth": 2, "embed_dim": 12, "num_heads": 3, "in_chans": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, **options)


def transformer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return Wired(lambda net, x: net.last(net.layer(net.first(x.flatten(2).mT)).mean(1)),
                 first=nn.Linear(2, 8), layer=layer, last=nn.Linear(8, 3))  # fmt: skip


def scaled():
    """Layer scale and a shortcut of zero-padded channels, hard-coded sizes, and a parameter without a layer."""

    def form(net, x):
        y = net.first(x)
        y = y + net.scale * net.second(y)
        z = F.pad(y, (0, 0, 0, 0, 0, 2)) + net.third(y)
        return net.last(z.mean((2, 3)).reshape(-1, 8) + net.shift)

    parts = {"scale": nn.Parameter(torch.ones(6, 1, 1)), "shift": nn.Parameter(torch.ones(8))}
    third, last = nn.Sequential(conv(6, 5), conv(5, 8)), nn.Linear(8, 3)
    return Wired(form, **parts, first=conv(2, 6), second=conv(6, 6), third=third, last=last)


def upsampled():
    up = (nn.ConvTranspose2d(6, 5, 2, stride=2), nn.PReLU(5), nn.Upsample(scale_factor=2, mode="bilinear"))
    return nn.Sequential(conv(2, 6), nn.AvgPool2d(2), *up, conv(5, 3, norm=False))


def extremes():
    """An operator with several results, without a rule."""
    first, last = nn.Sequential(conv(2, 6), conv(6, 4)), nn.Sequential(conv(6, 5), head(5))
    form = lambda net, x: net.last(torch.cat([net.first(x), *net.other(x).topk(2, 1)[:1]], 1))  # noqa: E731
    return Wired(form, first=first, other=nn.Sequential(conv(2, 5), conv(5, 4)), last=last)


def attended():
    """Channels weighed by their largest value and their mean, as in CBAM, and a pool that divides by another number."""
    pools = Branches(nn.AdaptiveMaxPool2d(1), nn.AdaptiveAvgPool2d(1), join="cat")
    block = Wired(lambda net, x: x * net.gate(net.pools(x)), pools=pools, gate=conv(16, 8, 1, norm=False, bias=True))
    odd = nn.AvgPool2d(2, divisor_override=3)
    return nn.Sequential(conv(2, 8), block, odd, conv(8, 6, 1), nn.AdaptiveMaxPool2d((2, 3)), conv(6, 4, 1), head(4))


def several():
    """Two networks on the same images, one with dilation and reflected borders."""
    first = nn.Conv2d(2, 6, 3, dilation=2, padding=2, padding_mode="reflect")
    return Beside({"one": residual(), "two": nn.Sequential(first, nn.SiLU(), conv(6, 3), head(3))})


_MADE = (residual, depthwise, perceptron, flattened, squeezed, shuffled, attention, transformer, scaled, upsampled)
NETWORKS = {make.__name__: make for make in (*_MADE, extremes, attended, several)} | {
    "concatenated": lambda: nn.Sequential(Branches(conv(2, 5), conv(2, 4, 1), join="cat"), conv(9, 4), head(4)),
    "grouped": lambda: nn.Sequential(conv(2, 8), conv(8, 12, groups=4), conv(12, 4, 1), head(4)),
    "shared": lambda: nn.Sequential(conv(2, 4), *[conv(4, 4)] * 2, head(4)),
}
SIDE = 8


def build(name, seed):
    """A network in float64, and three images."""
    model = NETWORKS[name]().double().eval()
    generator = draw(model, seed)
    return model, torch.randn(3, 2, SIDE, SIDE, generator=generator, dtype=torch.float64)


def thin(model, seed, density=0.4):
    """A random mask that removes half of all filters, and half of all columns, as a whole."""
    generator = torch.Generator().manual_seed(seed)
    entries = random_mask(model, seed, density)
    for kept in entries.values():
        for dim in (0, 1):
            kept.index_fill_(dim, (torch.rand(kept.shape[dim], generator=generator) > 0.6).nonzero().flatten(), False)
    return Mask(entries)
