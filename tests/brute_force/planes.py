"""Convolutions, linear layers and pools of images written out as loops over pixels and taps."""

import itertools

import torch


def geometry(module):
    """Kernel, stride, dilation and padding, each for rows and columns."""
    options = module.kernel_size, module.stride, getattr(module, "dilation", 1), module.padding
    return [(option, option) if isinstance(option, int) else option for option in options]


def extents(sides, module):
    """Rows and columns of the windows that lie on the padded image."""
    sizes = zip(sides, *geometry(module), strict=True)
    return [
        (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1 for size, kernel, stride, dilation, pad in sizes
    ]


def taps(sides, module, place):
    """The row and column of each tap of one output pixel that lie within an image, with the tap."""
    kernel, (sh, sw), (dh, dw), (ph, pw) = geometry(module)
    for r, c in itertools.product(*map(range, kernel)):
        i, j = place[0] * sh + r * dh - ph, place[1] * sw + c * dw - pw
        if 0 <= i < sides[0] and 0 <= j < sides[1]:
            yield r, c, i, j


def convolved(x, module, sides):
    weight, per_group = module.weight, module.out_channels // module.groups
    y = torch.zeros(len(x), module.out_channels, *sides, dtype=torch.float64)
    for n, o, i, j in itertools.product(*map(range, y.shape)):
        total = module.bias[o].item() if module.bias is not None else 0.0
        for channel in range(weight.shape[1]):
            source = x[n, o // per_group * weight.shape[1] + channel]
            total += sum(
                (weight[o, channel, r, c] * source[a, b]).item() for r, c, a, b in taps(x.shape[2:], module, (i, j))
            )
        y[n, o, i, j] = total
    return y


def largest(x, module, sides):
    y = torch.zeros(*x.shape[:2], *sides, dtype=torch.float64)
    for n, c, i, j in itertools.product(*map(range, y.shape)):
        y[n, c, i, j] = max(x[n, c, a, b].item() for _, _, a, b in taps(x.shape[2:], module, (i, j)))
    return y
