"""Convolutions, linear layers and pools of images written out as loops over pixels and taps."""

import itertools

import torch


def taps(x, module, place):
    """The row and column of each tap of one output pixel that lie within an image, with the tap."""
    height, width = x.shape[2:]
    pairs = (module.kernel_size, module.stride, module.dilation, module.padding)
    (kh, kw), (sh, sw), (dh, dw), (ph, pw) = ((p, p) if isinstance(p, int) else p for p in pairs)
    for r, c in itertools.product(range(kh), range(kw)):
        i, j = place[0] * sh + r * dh - ph, place[1] * sw + c * dw - pw
        if 0 <= i < height and 0 <= j < width:
            yield r, c, i, j


def convolved(x, module, sides):
    weight, per_group = module.weight, module.out_channels // module.groups
    y = torch.zeros(len(x), module.out_channels, *sides, dtype=torch.float64)
    for n, o, i, j in itertools.product(*map(range, y.shape)):
        total = module.bias[o].item() if module.bias is not None else 0.0
        for channel in range(weight.shape[1]):
            source = x[n, o // per_group * weight.shape[1] + channel]
            total += sum((weight[o, channel, r, c] * source[a, b]).item() for r, c, a, b in taps(x, module, (i, j)))
        y[n, o, i, j] = total
    return y


def largest(x, module, sides):
    y = torch.zeros(*x.shape[:2], *sides, dtype=torch.float64)
    for n, c, i, j in itertools.product(*map(range, y.shape)):
        y[n, c, i, j] = max(x[n, c, a, b].item() for _, _, a, b in taps(x, module, (i, j)))
    return y
