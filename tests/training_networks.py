"""Narrow networks of every shape that convolutions are trained in, for images of 12 pixels."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from brute_force.cases import Wired


def unit(inputs, outputs, kernel=3, stride=1, groups=1, act=nn.ReLU, **norm):
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs, **norm), *([act()] if act else []))


def head(channels):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


class Block(nn.Module):
    """A residual block; the identity is projected, sliced and padded (option A), or added in place."""

    def __init__(self, inputs, outputs, stride=1, way="project"):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.way, self.more = way, outputs - inputs
        self.down = nn.Identity()
        if way != "pad" and (stride > 1 or inputs != outputs):
            self.down = unit(inputs, outputs, 1, stride, act=None)
        self.relu = nn.ReLU(inplace=way == "inplace")

    def forward(self, x):
        assert x.shape[1] == x.size(1) == x.size()[1] == self.conv1.in_channels and x.dim() == 4
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.way == "pad" and self.more:
            return F.relu(out + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more - self.more // 2)))
        if self.way == "inplace":
            out += self.down(x)
            self.relu(out)
            return out
        return F.relu(out + self.down(x))


def resnet(way="project", widths=(4, 6, 8), depth=1):
    """ResNet-20 where the depth is 3."""
    blocks, before = [], widths[0]
    for width in widths:
        for n in range(depth):
            blocks.append(Block(before, width, 2 if n == 0 and width != widths[0] else 1, way))
            before = width
    return nn.Sequential(*unit(3, widths[0]), *blocks, head(before))


def vgg(**norm):
    pools = [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, ceil_mode=True)]
    return nn.Sequential(
        *unit(3, 4, **norm), *unit(4, 6, **norm), pools[0], *unit(6, 8, **norm), pools[1],
        *unit(8, 8, **norm), pools[2], nn.Flatten(), nn.Linear(32, 6), nn.ReLU(), nn.Linear(6, 5),
    )  # fmt: skip


class Inverted(nn.Module):
    def __init__(self, channels, depth=0.0):
        super().__init__()
        wide = 2 * channels
        depthwise = unit(wide, wide, groups=wide, act=nn.ReLU6)
        self.body = nn.Sequential(unit(channels, wide, 1, act=nn.ReLU6), depthwise, unit(wide, channels, 1, act=None))
        self.drop = StochasticDepth(depth, "row")

    def forward(self, x):
        return x + self.drop(self.body(x))


def mobilenet(depth=0.0):
    return nn.Sequential(unit(3, 4, 3, 2, act=nn.ReLU6), Inverted(4, depth), Inverted(4, depth), unit(4, 8, 1), head(8))


class Growing(nn.Module):
    """A layer of a DenseNet, which reads one tensor or a list of them as in torchvision."""

    def __init__(self, inputs, growth=3):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 4, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, growth, 3, padding=1, bias=False)

    def forward(self, given):
        given = [given] if isinstance(given, torch.Tensor) else given
        x = self.conv1(F.relu(self.norm1(torch.cat(given, 1)), inplace=True))
        return self.conv2(F.relu(self.norm2(x), inplace=True))


class DenseBlock(nn.Module):
    def __init__(self, inputs, layers):
        super().__init__()
        self.layers = nn.ModuleList(Growing(inputs + 3 * n) for n in range(layers))

    def forward(self, x):
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


def densenet():
    stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    between = nn.Sequential(nn.BatchNorm2d(13), nn.ReLU(), nn.Conv2d(13, 6, 1, bias=False), nn.AvgPool2d(2))
    return nn.Sequential(
        stem, nn.BatchNorm2d(4), Growing(4), DenseBlock(3, 1), nn.Conv2d(6, 4, 1), DenseBlock(4, 3), between,
        nn.BatchNorm2d(6), nn.ReLU(), head(6),
    )  # fmt: skip


class Preactivated(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        out = F.relu(self.bn1(x))
        identity = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + identity


def preactivated():
    blocks = [Preactivated(4, 4), Preactivated(4, 6, 2), Preactivated(6, 6)]
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), *blocks, nn.BatchNorm2d(6), nn.ReLU(), head(6))


def looks():
    """What networks ask of an activation, and what they do with it besides."""

    def form(net, x):
        x = net.a(x)
        count, channels, height, width = x.shape
        assert isinstance(x, torch.Tensor) and torch.is_tensor(x)
        assert x.dim() == x.ndim == 4 and x.size(1) == x.size()[1] == channels and x.numel() == x.shape.numel()
        assert x.dtype == x.new_zeros(1).dtype and x.device.type == "cpu" and not x.is_sparse
        gate = net.b(x.mean((2, 3), keepdim=True)).sigmoid()
        x = net.c(x * gate + x.view(count, channels, height * width).amax(2)[..., None, None])
        x = net.d(F.interpolate(x, scale_factor=2.0)) - 0.5 * F.silu(net.e(x)).repeat_interleave(2, 2).tile(2)
        return net.head(-x + x.transpose(2, 3).flip(3))

    parts = {"a": unit(3, 4), "b": nn.Conv2d(4, 4, 1), "c": unit(4, 4, act=None), "d": unit(4, 6), "e": unit(4, 6)}
    return Wired(form, **parts, head=head(6))


def writes():
    """Everything in place, in and out of what a layer gives, with results that nobody reads."""

    def form(net, x):
        x = net.a[0](x)
        x.mul_(0.7)
        x = net.a[1](x)
        F.relu(x, inplace=True)
        y = net.b[1](net.b[0](x))
        y += x
        y.relu_()
        z = net.c[1](net.c[0](y))
        z.add_(y, alpha=0.5)
        z[:, 0] = 0.3
        z.clamp_(max=1.5)
        z = net.d[1](net.d[0](z))
        z /= 2
        return net.head(torch.relu_(z))

    return Wired(form, **{name: unit(3 if name == "a" else 4, 4, act=None) for name in "abcd"}, head=head(4))


def doubled():
    """What waits meets itself, in every form of a sum, before and after others have read it."""

    def form(net, x):
        x = net.a(x)
        x = F.relu(x + x)
        y = net.b(x)
        y += y
        z = net.c(F.relu(torch.add(y, y, alpha=0.5)))
        z = z.add_(z) + torch.cat([z, z], 1)[:, 2:6]
        z = net.d(z - z.sigmoid())
        return net.head(F.relu(z + z) + (z - 2 * z) * z)

    return Wired(form, **{name: unit(3 if name == "a" else 4, 4, act=None) for name in "abcd"}, head=head(4))


def shared():
    """One layer twice, with one norm and with another, and another one in both orders of reading."""

    def form(net, x):
        x = net.stem(x)
        x = F.relu(net.norm(net.conv(x)))
        x = F.relu(net.other(net.conv(x)))
        return net.head(net.both(x) + net.both(x.flip(2)))

    norms = {"norm": nn.BatchNorm2d(4), "other": nn.BatchNorm2d(4)}
    return Wired(form, stem=unit(3, 4), conv=nn.Conv2d(4, 4, 3, padding=1), **norms, both=unit(4, 4), head=head(4))


def checkpointed(reentrant):
    """Computed again on the way back."""

    def form(net, x):
        x = net.stem(x)
        for part in (net.one, net.two):
            x = checkpoint(part, x, use_reentrant=reentrant) if net.training else part(x)
        return net.head(x)

    return Wired(form, stem=unit(3, 4), one=Block(4, 4), two=nn.Sequential(*unit(4, 6), *unit(6, 6)), head=head(6))


def dropped():
    """Whole channels, whole blocks, and features of the head."""
    net = mobilenet(0.5)
    last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.4), nn.Linear(8, 5))
    return nn.Sequential(*net[:4], nn.Dropout2d(0.3), unit(8, 8), last)


def training_only():
    """Another way in training than in evaluation."""

    def form(net, x):
        x = net.norm(net.conv(net.stem(x)))
        if net.training:
            x = x + 0.1 * x.mean((2, 3), keepdim=True)
        y = net.last(F.relu(x))
        if net.training:
            y.mul_(0.7)
        y = net.end(y)
        return net.head(y) + (net.more(x) if net.training else 0)

    convs = {"stem": unit(3, 4), "conv": nn.Conv2d(4, 6, 3, padding=1, bias=False), "last": unit(6, 6, act=None)}
    return Wired(form, **convs, norm=nn.BatchNorm2d(6), end=unit(6, 6), head=head(6), more=head(6))


def frozen_norms():
    """Some norms are in evaluation mode while the network trains, as in detection."""
    net = resnet()
    for module in [net[1], net[4].bn1, net[4].bn2, *net[4].down.modules()]:
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)
    return net


class Named(nn.Module):
    """One module by two names, of which masks have the first one."""

    def __init__(self):
        super().__init__()
        self.first = self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(3), head(3)

    def forward(self, x):
        return self.head(self.second(F.relu(self.norm(self.first(x)))))
